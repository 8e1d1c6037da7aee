"""Word lists of the tasks, our own, the commonest first; each task keeps what is one token."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FEMALE = _words(
    "Mary Anna Emma Sarah Laura Julia Alice Kate Jane Amy Lisa Maria Linda Karen Susan Nancy Helen "
    "Rachel Rebecca Hannah Emily Sophie Lucy Claire Diana Ella Olivia Lily Ruth Naomi Esther "
    "Martha Alison Andrea Angela Anne Barbara Carol Caroline Catherine Charlotte Christina "
    "Christine Clara Daisy Dorothy Elizabeth Ellen Eleanor Florence Heather Holly Isabel Isabella "
    "Jackie Jennifer Jenny Jessica Jill Joan Judith Judy Julie Katherine Kathleen Katie Kelly "
    "Lauren Leslie Louise Margaret Marie Melissa Michelle Molly Monica Nicole Nina Patricia Sally "
    "Samantha Sandra Sara Sharon Shirley Sophia Stephanie Sue Teresa Victoria Virginia Wendy "
    "Abigail Agnes Amelia Bella Deborah Edith Erin Frances Lorraine Miranda Rosa Ruby"
)
"""Given names of women."""

MALE = _words(
    "John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony "
    "Paul Andrew Joshua Kenneth Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan Jacob "
    "Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Benjamin Samuel Gregory Frank "
    "Alexander Raymond Patrick Jack Dennis Jerry Tyler Aaron Jose Adam Henry Nathan Douglas Peter "
    "Walter Ethan Jeremy Harold Keith Roger Noah Gerald Carl Terry Sean Arthur Lawrence Jesse "
    "Bryan Joe Albert Gabriel Alan Juan Wayne Roy Ralph Eugene Vincent Russell Louis Bobby Philip "
    "Simon Tom Tim Tony Luke Lucas Oliver Oscar Sam Steve Stuart Theodore Harry Hugh Ian Isaac "
    "Ivan Jim Julian Karl Leonard Martin Marcus Mario Neil Norman Owen"
)
"""Given names of men."""

OBJECTS = _words(
    "ring book drink bone computer necklace basketball snack ball pen pencil letter cup plate "
    "bottle map key coin ticket card box bag hat coat watch phone camera lamp chair blanket pillow "
    "towel brush mirror clock knife spoon bowl basket bucket rope hammer flower plant rock feather "
    "candle flag drum guitar violin bell toy doll puzzle kite balloon bicycle cake cookie pie "
    "banana lemon peach potato sandwich pizza salad newspaper magazine notebook photo picture "
    "poster gift present medal"
)
"""Things that one person can give to another, used with "a"."""

PLACES = _words(
    "store school park garden house hospital office restaurant library museum station airport "
    "market bank church hotel bar gym beach river lake farm zoo theater cinema stadium pool "
    "playground mall bakery factory warehouse harbor castle palace temple kitchen garage studio "
    "gallery shop pub club camp"
)
"""Places, used with "the"."""

NOUNS = tuple(
    (word, word + "s")
    for word in _words(
        "boy girl king queen doctor teacher student farmer driver writer author singer "
        "actor artist lawyer judge nurse officer pilot soldier worker manager engineer chef dancer "
        "painter poet priest guard guest hunter sailor parent friend neighbor player leader "
        "senator president minister professor scientist customer client patient visitor tourist"
    )
)
"""Nouns of people: (singular, plural)."""

VERBS = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("needs", "need"),
    ("does", "do"),
    ("knows", "know"),
)
"""Verbs: (form of a singular subject, form of a plural one)."""

PROFESSIONS = _words(
    "doctor nurse teacher lawyer chef baker writer singer dancer painter pilot driver farmer "
    "professor student manager coach player judge guard soldier cook poet dentist librarian "
    "secretary carpenter designer musician photographer reporter runner swimmer"
)
"""Professions, used with "a" and an adjective."""

EVENTS = _words(
    "war dispute trip mission siege study project journey voyage campaign conflict program "
    "marriage reign construction expedition strike famine tour trial occupation alliance contract "
    "treaty peace friendship rivalry operation experiment investigation"
)
"""What can last from one year to another, used with "the"."""
