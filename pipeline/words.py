"""Numbers in messages."""


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number and what is counted.

    Example:
        >>> counted(1, "image"), counted(2500, "image"), counted(2, "class", "classes")
        ('1 image', '2,500 images', '2 classes')
    """
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"
