"""The official .npz layout: keys, shapes, bytes, the older layout, and what is refused."""

import io
import os
import zipfile

import numpy as np
import pytest
import torch

from mixer_dist.models import npz
from mixer_dist.models.matching import infer_dimensions
from mixer_dist.models.mixer import MlpMixer, build_mixer
from tests.models import reference

TINY = {
    "patch_size": 4,
    "hidden_dim": 8,
    "num_blocks": 2,
    "tokens_mlp_dim": 5,
    "channels_mlp_dim": 12,
    "num_classes": 7,
}


@pytest.fixture
def arrays():
    """Random fp32 official arrays of TINY on 12 x 12 images, 9 tokens."""
    parameters = reference.random_parameters(num_tokens=9, **TINY)
    return {key: value.astype(np.float32) for key, value in parameters.items()}


@pytest.fixture
def model():
    return MlpMixer(12, **TINY)


def write(path, arrays):
    np.savez(path, **arrays)
    return path


def test_keys_and_shapes_are_the_official_ones():
    with torch.device("meta"):
        model = build_mixer("B/16", 1000)
    official = npz.to_official({n: torch.zeros(p.shape) for n, p in _few(model)}, 16)
    assert {key: array.shape for key, array in official.items()} == {
        "stem/kernel": (16, 16, 3, 768),
        "stem/bias": (768,),
        "MixerBlock_11/LayerNorm_0/scale": (768,),
        "MixerBlock_11/LayerNorm_0/bias": (768,),
        "MixerBlock_11/token_mixing/Dense_0/kernel": (196, 384),
        "MixerBlock_11/token_mixing/Dense_0/bias": (384,),
        "MixerBlock_11/token_mixing/Dense_1/kernel": (384, 196),
        "MixerBlock_11/token_mixing/Dense_1/bias": (196,),
        "MixerBlock_11/LayerNorm_1/scale": (768,),
        "MixerBlock_11/LayerNorm_1/bias": (768,),
        "MixerBlock_11/channel_mixing/Dense_0/kernel": (768, 3072),
        "MixerBlock_11/channel_mixing/Dense_0/bias": (3072,),
        "MixerBlock_11/channel_mixing/Dense_1/kernel": (3072, 768),
        "MixerBlock_11/channel_mixing/Dense_1/bias": (768,),
        "pre_head_layer_norm/scale": (768,),
        "pre_head_layer_norm/bias": (768,),
        "head/kernel": (768, 1000),
        "head/bias": (1000,),
    }
    assert {array.dtype for array in official.values()} == {np.dtype(np.float32)}


def _few(model):
    """The parameters outside of the blocks and those of the last block."""
    return [(n, p) for n, p in model.named_parameters() if "blocks" not in n or "blocks.11." in n]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_round_trip_is_equal_byte_for_byte(arrays, model, tmp_path, dtype):
    model.to(dtype)
    npz.load_npz(model, write(tmp_path / "official.npz", arrays))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    npz.save_npz(model, tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as saved:
        assert set(saved.files) == set(arrays)
        for key, array in arrays.items():
            assert saved[key].dtype == np.float32
            assert saved[key].flags.c_contiguous
            assert saved[key].shape == array.shape
            assert saved[key].tobytes() == array.tobytes(), key


def test_a_bfloat16_model_is_saved_and_loaded_by_value(model, tmp_path):
    model.bfloat16()
    npz.save_npz(model, tmp_path / "a.npz")
    other = MlpMixer(12, **TINY, head_bias=3.0).bfloat16()
    npz.load_npz(other, tmp_path / "a.npz")
    assert all(torch.equal(a, b) for a, b in _pairs(model, other))


def _pairs(model, other):
    return zip(model.parameters(), other.parameters(), strict=True)


def test_equal_weights_give_equal_files_at_any_time(model, tmp_path, monkeypatch):
    npz.save_npz(model, tmp_path / "a.npz")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    npz.save_npz(model, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("broken", ["numpy.savez", "pathlib.Path.replace"])
def test_a_failed_save_leaves_the_old_file_and_no_other(model, tmp_path, monkeypatch, broken):
    path = tmp_path / "model.npz"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match="disk full"):
        npz.save_npz(model, path)
    assert os.listdir(tmp_path) == ["model.npz"]
    assert path.read_bytes() == b"old"


def test_pure_conversions_need_no_model(arrays):
    state = npz.from_official(arrays)
    assert state.keys() == MlpMixer(12, **TINY).state_dict().keys()
    back = npz.to_official(state, TINY["patch_size"])
    assert all(back[key].tobytes() == array.tobytes() for key, array in arrays.items())
    assert infer_dimensions(state) == {"image_size": 12, **TINY}
    headless = {key: array for key, array in arrays.items() if "head/" not in key}
    assert infer_dimensions(npz.from_official(headless))["num_classes"] == 0


def test_tokens_of_an_oblong_image_convert_but_tell_no_image_size():
    arrays = reference.random_parameters(num_tokens=6, **TINY)
    MlpMixer((8, 12), **TINY).load_state_dict(npz.from_official(arrays))
    with pytest.raises(ValueError, match=r"square number of tokens.*got 6; build"):
        infer_dimensions(npz.from_official(arrays))


@pytest.mark.parametrize("second_norm", [1, 2])
def test_the_older_layout_is_read_too(arrays, model, tmp_path, second_norm):
    old = write(tmp_path / "old.npz", _old_layout(arrays, second_norm))
    npz.load_npz(model, old)
    back = npz.to_official(model.state_dict(), TINY["patch_size"])
    assert all(back[key].tobytes() == array.tobytes() for key, array in arrays.items())
    assert infer_dimensions(npz.from_official(npz.read_npz(old))) == {"image_size": 12, **TINY}


def _old_layout(arrays, second_norm):
    """The names from before Flax's linen; its MLP arrays carried axes of length 1."""
    old = {}
    for key, array in arrays.items():
        key = key.replace("stem/", "embedding/").replace("pre_head_layer", "Mixer/encoder")
        key = key.replace("MixerBlock_", "Mixer/encoderblock_")
        key = key.replace("LayerNorm_1", f"LayerNorm_{second_norm}")
        for number in (1, 2):
            key = key.replace(f"mixing/Dense_{number - 1}/kernel", f"mixing_phase_0/kernel{number}")
            key = key.replace(f"mixing/Dense_{number - 1}/bias", f"mixing_phase_0/bias{number}")
        old[key] = array[None] if "_phase_" in key else array
    return old


def test_every_array_that_does_not_fit_is_named_at_once(arrays, model, tmp_path):
    del arrays["head/bias"], arrays["MixerBlock_1/LayerNorm_0/scale"]
    arrays["stem/bias"] = arrays["stem/bias"][:3]
    arrays["head/kernel"] = arrays["head/kernel"].T.copy()
    arrays["pre_head_layer_norm/bias"] = np.zeros(8, dtype=np.int64)
    arrays["opt/step"] = np.zeros(())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="6 arrays") as caught:
        npz.load_npz(model, write(tmp_path / "bad.npz", arrays))
    message = str(caught.value)
    assert "\n" not in message
    assert "bad.npz" in message
    assert "missing head/bias; " in message
    assert "missing MixerBlock_1/LayerNorm_0/scale; " in message
    assert "unexpected opt/step; " in message
    assert "stem/bias is float32 (3,), expected float (8,); " in message
    assert "head/kernel is float32 (7, 8), expected float (8, 7); " in message
    assert "pre_head_layer_norm/bias is int64 (8,), expected float (8,); " in message
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "key", ["extra", "MixerBlock_0/LayerNorm_1/kernel", "MixerBlock_x/LayerNorm_1/bias", "head/x"]
)
def test_a_name_that_no_mixer_has_stays_as_it_is(arrays, key):
    expected = npz.from_official(arrays)
    arrays[key] = np.ones(2, dtype=np.float32)
    found = npz.from_official(arrays)
    assert torch.equal(found.pop(key), torch.ones(2))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_arrays_that_are_no_numbers_are_all_named(arrays):
    arrays |= {"stem/bias": np.zeros(8, dtype=np.int64), "note": np.array("text")}
    with pytest.raises(ValueError, match=r"stem/bias is int64; note is <U4"):
        npz.from_official(arrays)


def test_tensors_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"got none.*stem\.weight, blocks\.0\.token_mixing"):
        infer_dimensions({"cls": torch.zeros(3)})


def test_two_arrays_for_one_parameter_are_refused(arrays):
    old = _old_layout(arrays, second_norm=1)
    with pytest.raises(ValueError, match="one array for stem/bias, got a second"):
        npz.from_official({**old, "stem/bias": arrays["stem/bias"]})


def test_a_foreign_parameter_name_is_refused():
    with pytest.raises(ValueError, match=r"MlpMixer parameter, got 'blocks\.0\.attention\.weight'"):
        npz.to_official({"blocks.0.attention.weight": torch.zeros(2, 2)}, 4)


def _npy_bytes():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(2))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut", _npy_bytes()])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "wrong.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected an \.npz file.*wrong\.npz.*again"):
        npz.read_npz(path)


def test_damaged_bytes_are_noticed_wherever_an_array_depends_on_them(model, tmp_path):
    path = tmp_path / "model.npz"
    npz.save_npz(model, path)
    original, data = npz.read_npz(path), path.read_bytes()
    num_noticed = 0
    for position in range(0, len(data), 61):
        path.write_bytes(data[:position] + bytes([data[position] ^ 8]) + data[position + 1 :])
        try:
            arrays = npz.read_npz(path)
        except ValueError as error:
            num_noticed += "expected an .npz file" in str(error)
            continue
        for key in arrays.keys() & original.keys():  # load_npz notices a changed name
            assert np.array_equal(arrays[key], original[key]), position
    assert num_noticed > 100


def test_an_archive_that_calls_itself_encrypted_is_refused(model, tmp_path):
    path = tmp_path / "model.npz"
    npz.save_npz(model, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flags of the first directory entry
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"expected an \.npz file.*encrypted"):
        npz.read_npz(path)


def test_a_pickle_in_the_archive_is_not_read(arrays, model, tmp_path):
    arrays["head/bias"] = np.array([print], dtype=object)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        npz.load_npz(model, write(tmp_path / "pickle.npz", arrays))


def test_the_archive_is_plain_and_its_members_sorted(model, tmp_path):
    npz.save_npz(model, tmp_path / "model.npz")
    with zipfile.ZipFile(tmp_path / "model.npz") as archive:
        assert archive.namelist() == sorted(archive.namelist())
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
