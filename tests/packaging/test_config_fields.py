"""Every field of a config is documented and read by code that holds a config of that class.

A read counts when the object it is read from is known to be of the class: `self`, an annotated
parameter or variable, what a function returns, or a field of another class. `.k` of something else
does not count, so a field that nobody reads is found even where its name is a common one.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("saelab", "training", "evals", "dashboards")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
CONFIG_NAMES = ("Config", "Options", "Command", "Filter", "Overrides")


class Classes:
    """What annotations say: fields and methods of classes, and what functions return."""

    def __init__(self, trees):
        self.fields, self.methods, self.bases, self.functions = {}, {}, {}, {}
        self.protocols = set()
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self._add(node)
                elif isinstance(node, ast.FunctionDef) and node.returns is not None:
                    self.functions.setdefault(node.name, set()).update(self.named(node.returns))

    def _add(self, node):
        fields = self.fields.setdefault(node.name, {})
        methods = self.methods.setdefault(node.name, {})
        self.bases.setdefault(node.name, set()).update(
            base.id for base in node.bases if isinstance(base, ast.Name)
        )
        if any(ast.unparse(base).endswith("Protocol") for base in node.bases):
            self.protocols.add(node.name)
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                fields[part.target.id] = self.named(part.annotation)
            elif isinstance(part, ast.FunctionDef):
                methods[part.name] = self.named(part.returns)
                fields.update(self._own_attributes(part, node.name))

    def _own_attributes(self, function, owner):
        """`self.x = y` with an annotated parameter y."""
        known = {a.arg: self.named(a.annotation) for a in function.args.args if a.annotation}
        known.setdefault("self", {owner})
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
                for target in node.targets:
                    if isinstance(target, ast.Attribute) and node.value.id in known:
                        yield target.attr, known[node.value.id]

    @staticmethod
    def named(annotation):
        """Every class that an annotation names, whatever stands around it."""
        if annotation is None:
            return set()
        return set(re.findall(r"\b[A-Za-z_]\w*\b", ast.unparse(annotation)))

    def ancestors(self, name):
        """A class and all that it inherits from."""
        known = [base for base in self.bases.get(name, ()) if base in self.fields]
        return {name}.union(*map(self.ancestors, known))

    def members(self, name):
        return {m for a in self.ancestors(name) for m in (*self.fields[a], *self.methods[a])}

    def stand_for(self, owner):
        """Protocols that a class fulfils, and the type variable of the suites' settings."""
        own = self.members(owner)
        return {p for p in self.protocols if self.members(p) <= own} | {"ConfigT"}

    def attribute(self, owners, name):
        found = set()
        for owner in owners:
            for holder in self.ancestors(owner):
                found |= self.fields.get(holder, {}).get(name, set())
                found |= self.methods.get(holder, {}).get(name, set())
        return found


class Reads(ast.NodeVisitor):
    """Collects (class, attribute) of every read."""

    def __init__(self, classes):
        self.classes, self.found, self.scopes, self.owner = classes, set(), [{}], None

    def visit_ClassDef(self, node):
        before, self.owner = self.owner, node.name
        self.generic_visit(node)
        self.owner = before

    def visit_FunctionDef(self, node):
        scope = dict(self.scopes[-1])
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            scope[argument.arg] = self.classes.named(argument.annotation)
        if arguments and arguments[0].arg in ("self", "cls") and self.owner:
            scope[arguments[0].arg] = {self.owner}
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.scopes[-1][node.target.id] = self.classes.named(node.annotation)

    def visit_Assign(self, node):
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, self.kind(node.value))

    def visit_For(self, node):
        self._bind(node.target, self.kind(node.iter))
        self.generic_visit(node)

    def visit_comprehension(self, node):
        self._bind(node.target, self.kind(node.iter))
        self.generic_visit(node)

    def _comprehension(self, node):
        for generator in node.generators:
            self.visit(generator)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def _bind(self, target, kind):
        for name in ast.walk(target):
            if isinstance(name, ast.Name) and kind:
                self.scopes[-1][name.id] = kind

    def visit_Attribute(self, node):
        self.found |= {(owner, node.attr) for owner in self.kind(node.value)}
        self.generic_visit(node)

    def visit_Call(self, node):
        match node:
            case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=name), *_]):
                self.found |= {(owner, name) for owner in self.kind(value)}
            case ast.Call(func=ast.Name(id="getattr"), args=[value, _, *_]):
                # The name is computed: all the strings and fields it could be.
                self.found |= {(owner, None) for owner in self.kind(value)}
        self.generic_visit(node)

    def kind(self, node):
        """Classes that an expression may be of."""
        match node:
            case ast.Name(id=name):
                return self.scopes[-1].get(name, set())
            case ast.Attribute(value=value, attr=name):
                return self.classes.attribute(self.kind(value), name)
            case ast.Call(func=ast.Name(id="replace"), args=[value, *_]):
                return self.kind(value)
            case ast.Call(func=ast.Name(id=name)):
                called = {name} if name in self.classes.fields else set()
                arguments = {a.id for a in node.args if isinstance(a, ast.Name)}
                return called | self.classes.functions.get(name, set()) | arguments
            case ast.Call(func=ast.Attribute(value=value, attr=name)):
                known = self.kind(value)
                return self.classes.attribute(known, name) | known
            case ast.IfExp(body=one, orelse=other):
                return self.kind(one) | self.kind(other)
            case ast.BoolOp(values=values):
                return set().union(*map(self.kind, values))
            case ast.Subscript(value=value) | ast.Starred(value=value):
                return self.kind(value)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return set().union(*map(self.kind, parts), set())
            case ast.ListComp(elt=part) | ast.GeneratorExp(elt=part):
                return self.kind(part)
        return set()


def unread(sources):
    """(class, field) of every config field that nothing reads from an object of its class."""
    trees = [ast.parse(text) for text in sources]
    classes = Classes(trees)
    reads = Reads(classes)
    for tree in trees:
        reads.visit(tree)
    found = set()
    for owner, fields in classes.fields.items():
        if not owner.endswith(CONFIG_NAMES):
            continue
        # A read from a class it inherits from, or from one that inherits from it, counts.
        heirs = {name for name in classes.fields if owner in classes.ancestors(name)}
        heirs |= classes.ancestors(owner)
        heirs |= {name for heir in tuple(heirs) for name in classes.stand_for(heir)}
        for name in fields:
            if not any((heir, name) in reads.found for heir in heirs):
                found.add((owner, name))
    return found, reads.found


def test_every_config_field_is_read_from_its_config():
    found, reads = unread([path.read_text(encoding="utf-8") for path in SOURCES])
    by_name = {owner for owner, name in reads if name is None}
    left = sorted(f"{owner}.{name}" for owner, name in found if owner not in by_name)
    assert not left, f"nobody reads {left}"


def test_a_field_with_a_common_name_is_found_when_nobody_reads_it():
    source = (
        "class ToyConfig:\n    k: int\n    seed: int\n"
        "class Batch:\n    seed: int\n"
        "def run(config: ToyConfig, batch: Batch):\n    return config.k + batch.seed\n"
    )
    assert unread([source])[0] == {("ToyConfig", "seed")}
