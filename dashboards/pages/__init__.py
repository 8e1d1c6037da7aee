"""A page is one file, which Streamlit runs as a script: it names its package for its imports."""
