"""Packages by their name, as `pip.parse` offers them."""

def requirement(name):
    return "@pypi//:" + name.lower().replace("_", "-")
