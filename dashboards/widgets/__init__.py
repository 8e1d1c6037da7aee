"""One file per page, each an import and a call; the pages themselves are in `views`."""
