import inspect

import pytest

from makel import errors
from makel.errors import CODES, REJECTED_EXIT_CODE, ImageError, MakelError, MissingExtraError, exit_code, http_status

TREE = [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, MakelError)]


def make(kind):
    return kind("it", "fit") if kind is MissingExtraError else kind("it")


def test_the_drawn_tree_is_the_real_one():
    drawn = {line.split()[1] for line in errors.__doc__.splitlines() if "──" in line}
    assert drawn | {"MakelError"} == {item.__name__ for item in TREE}


@pytest.mark.parametrize("kind", TREE)
def test_every_error_has_codes(kind):
    assert exit_code(make(kind)) in range(2, 126)  # 0 and 1 mean success and reject; shells use what is above
    assert http_status(make(kind)) in range(400, 600)


def test_exit_codes_tell_errors_apart():
    codes = [code for code, _ in CODES.values()]
    assert len(set(codes)) == len(codes)
    assert REJECTED_EXIT_CODE not in codes


def test_an_image_that_cannot_be_inspected_is_exit_code_3():
    assert exit_code(ImageError("x")) == 3


def test_an_error_without_a_row_takes_its_nearest_ancestors():
    class NewError(ImageError):
        pass

    assert exit_code(NewError("x")) == exit_code(ImageError("x"))
    assert http_status(MissingExtraError("fitting", "fit")) == http_status(errors.UsageError("x")) == 400


def test_a_missing_extra_says_the_install_command():
    error = MissingExtraError("makel fit", "fit")
    assert str(error) == "makel fit needs the 'fit' extra, which is not installed: pip install 'makel[fit]'"
    assert error.extra == "fit"


def test_a_message_is_text_whatever_a_files_name_holds():
    assert str(make(MakelError)) == "it"
    assert str(ImageError("part\udcff.png is damaged")) == "part\\udcff.png is damaged"
