"""Texts and classes are one table, and the server's table is covered by it."""

import pytest

from kvclient import errors
from kvclient.errors import BY_TEXT, AnswerLost, KvError, OutcomeUnknown, ServerError, server_error
from kvserver.api.status import CATALOGUE
from kvserver.errors import AnswerTooLargeError, NotActiveError, OutcomeUnknownError


def test_texts_and_classes_are_a_bijection() -> None:
    classes = {
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, ServerError) and found is not ServerError
    }
    assert set(BY_TEXT.values()) == classes
    assert len(BY_TEXT) == len(classes)
    for text, kind in BY_TEXT.items():
        assert kind.text == text
        assert type(server_error("UNKNOWN", text)) is kind


def test_every_error_says_what_to_do() -> None:
    for text, kind in BY_TEXT.items():
        error = kind("CODE", text)
        assert str(error) == kind.advice
        assert ": " in kind.advice
        assert (error.code, error.details) == ("CODE", text)


def test_an_unknown_text_keeps_its_words() -> None:
    error = server_error("INTERNAL", "boom")
    assert type(error) is ServerError
    assert str(error) == "the server answered INTERNAL: boom"


def test_each_text_of_our_server_has_a_class() -> None:
    decided_otherwise = {NotActiveError, OutcomeUnknownError, AnswerTooLargeError}
    assert CATALOGUE[AnswerTooLargeError].text == AnswerLost.text
    for error, status in CATALOGUE.items():
        assert (status.text in BY_TEXT) is (error not in decided_otherwise), status.text


@pytest.mark.parametrize(
    "name", ["DeadlineExceeded", "Unavailable", "ServerError", "OutcomeUnknown", "AnswerLost"]
)
def test_all_errors_have_one_base(name: str) -> None:
    assert issubclass(getattr(errors, name), KvError)


def test_an_unknown_outcome_names_endpoint_and_cause() -> None:
    error = OutcomeUnknown("the put", "h:1", "Socket closed")
    assert (error.endpoint, error.said) == ("h:1", "Socket closed")
    assert str(error) == (
        "the put may or may not be applied, since h:1 did not answer (Socket closed); "
        "read the keys before you repeat it"
    )
