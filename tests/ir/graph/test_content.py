import itertools

import pytest
import torch

from chainfx.ir.graph import content_hash, derived_generator
from tests.fresh import fresh

DIFFERENT = [
    *((), ("",), ("", ""), ("ab", "c"), ("a", "bc"), (["a"], "bc"), (["a", "bc"],), ("1",), (1,), (1.0,), (True,)),
    *((None,), ("None",), ({"a": 1},), ({"a": 2},), ({"b": 1},), (["a", 1],), ({},), ([],), ([[]],), ([], [])),
    *((torch.zeros(2),), (torch.zeros(2, 1),), (torch.zeros(1, 2),), (torch.zeros(2, dtype=torch.float64),)),
    *((torch.zeros(2, dtype=torch.int32),), (torch.tensor([0.0, 1.0]),), (torch.zeros(0),), (torch.zeros(()),)),
    *((torch.zeros(1), torch.zeros(1)), ([torch.zeros(1), torch.zeros(1)],)),
]


def test_whatever_differs_has_another_hash():
    hashes = [content_hash(*parts) for parts in DIFFERENT]
    for (one, first), (other, second) in itertools.combinations(zip(DIFFERENT, hashes, strict=True), 2):
        assert first != second, (one, other)


def test_equal_contents_have_one_hash_however_they_lie_in_memory():
    tensor = torch.arange(12.0).reshape(3, 4)
    assert content_hash(tensor) == content_hash(tensor.t().contiguous().t())
    assert content_hash(tensor) == content_hash(torch.nn.Parameter(tensor))
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": (2,), "a": 1})
    assert content_hash(part for part in "ab") != content_hash("a", "b")
    assert content_hash(iter(["a", "b"])) == content_hash(["a", "b"])
    assert content_hash(torch.ones(3, dtype=torch.bfloat16)) != content_hash(torch.ones(3))


def test_another_process_finds_the_same_hash():
    code = "from chainfx.ir.graph import content_hash; import torch; print(content_hash('a', {'b': torch.ones(2)}))"
    assert fresh(code).out.strip() == content_hash("a", {"b": torch.ones(2)})


def test_what_has_no_plain_content_is_refused():
    with pytest.raises(TypeError) as caught:
        content_hash(["a", torch.relu])
    assert str(caught.value) == (
        f"{torch.relu!r} of type builtin_function_or_method has no content to hash; give tensors and plain values"
    )


def test_a_generator_follows_seed_and_purpose_alone():
    def numbers(seed, purpose):
        return torch.rand(3, generator=derived_generator(seed, purpose)).tolist()

    assert numbers(0, "a") == numbers(0, "a")
    assert len({tuple(numbers(*each)) for each in ((0, "a"), (1, "a"), (0, "b"))}) == 3
    before = torch.get_rng_state()
    with torch.device("meta"):
        assert derived_generator(1, "a").device == torch.device("cpu")
    assert torch.equal(before, torch.get_rng_state())
    # sha256(b"0/exit1") begins with these seven bytes: stages that were stored stay what they are
    assert derived_generator(0, "exit1").initial_seed() == 12_141_457_424_879_127
