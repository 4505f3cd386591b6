"""Kinds of calls that could not share a forward are tried again, at growing intervals."""

from imagegen_worker.engines.continuous.unshareable import FIRST_CALLS, MAX_CALLS, UnshareableKeys


def calls_until_retry(keys):
    count = 0
    while keys.count("key") is not None:
        count += 1
    return count


def test_a_key_expires_after_a_number_of_calls_which_doubles():
    keys = UnshareableKeys()
    assert keys.count("key") is None
    for expected in (FIRST_CALLS, 2 * FIRST_CALLS, 4 * FIRST_CALLS):
        keys.add("key", "unequal")
        assert "key" in keys
        assert calls_until_retry(keys) == expected
        assert "key" not in keys
    for _ in range(20):
        keys.add("key", "unequal")
    assert calls_until_retry(keys) == MAX_CALLS


def test_other_keys_are_not_affected():
    keys = UnshareableKeys()
    keys.add("key", "unequal")
    assert keys.count("other") is None
    assert keys.count("key") == "unequal"
