"""Messages of bounded length keep their cause and remedy, however long the value."""

import pickle

import pytest

from ot_lens.errors import MAX_MESSAGE, OtLensError, OtLensTypeError
from ot_lens.study import parse_config
from ot_lens.study.preparation import check_choices


@pytest.mark.parametrize("kind", [OtLensError, OtLensTypeError])
def test_a_long_message_keeps_its_cause_and_its_remedy(kind):
    error = kind(f"There is no file {'x' * 10_000}: check the path.")
    assert str(error).startswith("There is no file xxx")
    assert str(error).endswith("xxx: check the path.")
    assert len(str(error)) == MAX_MESSAGE + len(" ... ")
    again = pickle.loads(pickle.dumps(error))  # as on a cluster
    assert (type(again), str(again)) == (kind, str(error))
    assert str(kind("x" * MAX_MESSAGE)) == "x" * MAX_MESSAGE


@pytest.mark.parametrize("field", ["judge", "perplexity_text", "tokens", "activation_dtype"])
def test_a_long_value_in_a_configuration_is_quoted_in_part(field):
    with pytest.raises(OtLensError) as caught:
        check_choices(parse_config({field: "9" * 50_000}))
    assert len(str(caught.value)) <= MAX_MESSAGE + len(" ... ")
