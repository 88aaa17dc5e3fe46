"""Numbers and names in messages and pictures."""


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number and what is counted.

    Example:
        >>> counted(1, "image"), counted(2500, "image"), counted(2, "class", "classes")
        ('1 image', '2,500 images', '2 classes')
    """
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def short(text: str, most: int) -> str:
    """A text of at most so many characters; an ellipsis stands for what is left out.

    Example:
        >>> short("hourglass", 9), short("hourglass", 6)
        ('hourglass', 'hourg\u2026')
    """
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def percent(value: float | None) -> str:
    """A fraction in percent; a dash where there is none.

    Example:
        >>> percent(0.5), percent(None)
        ('50.0 %', '-')
    """
    return "-" if value is None else f"{100 * value:.1f} %"


def first_line(error: BaseException, most: int | None = None) -> str:
    """The first line of an error's message, or its type where it has none.

    Args:
        error: Any.
        most: Letters that are kept; None for all.
    """
    return str(error).split("\n")[0].strip()[:most] or type(error).__name__


def told(error: BaseException) -> str:
    r"""What an exception says, in one line: its class too where its text alone says nothing.

    Example:
        >>> told(ValueError("two\nlines")), told(KeyError("a")), told(TimeoutError())
        ('two lines', "KeyError: 'a'", 'TimeoutError')
    """
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text
