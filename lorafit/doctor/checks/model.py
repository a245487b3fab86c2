"""The base model that was asked about: files, recorded hashes, tokenizer; nothing is fetched."""

from lorafit.doctor.check import Outcome, check, error, ok, skip, warn
from lorafit.doctor.hashes import recorded_hash, verify_hash
from lorafit.doctor.probe import Probe
from lorafit.errors import LorafitError
from lorafit.units import GIB, format_bytes, format_count

_ASK = "only with --model"
_QUICK_BYTES = GIB // 4
"""Files up to here are hashed at once: about a second; --deep hashes all of them."""
_SAMPLES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "naïve café, 東京, 🙂\n\tif x:\n        pass",
)


@check(
    "model.files",
    "What you asked about",
    "Model files",
    affects="the base model cannot be loaded, or is not what it seems",
)
def model_files(probe: Probe) -> Outcome:
    """Check configuration and safetensors headers: whole, no pickles, no pointers, no code."""
    if probe.question.model is None:
        return skip(_ASK)
    try:
        source = probe.model_source()
    except LorafitError as problem:
        hint, *commands = (problem.hint or "choose another --model").splitlines()
        if hint.startswith("hf download"):
            return error(str(problem), "download it first", hint, *commands)
        return error(str(problem), hint, *commands)
    weights = source.weights
    assert weights is not None
    files = f"{len(weights.files)} file{'s' if len(weights.files) > 1 else ''}"
    return ok(
        f"{source.model_type}, {format_count(weights.num_parameters)} parameters, "
        f"{format_bytes(weights.num_bytes)} as {weights.stored_dtype} in {files}; whole, no code",
        measured=format_bytes(weights.num_bytes),
    )


@check(
    "model.hash",
    "What you asked about",
    "Model hashes",
    affects="weights that were altered or damaged train and answer wrongly without an error",
)
def model_hashes(probe: Probe) -> Outcome:
    """Compare files with the hashes that the hub recorded when they were downloaded."""
    if probe.question.model is None:
        return skip(_ASK)
    try:
        folder = probe.model_source(need_weights=False).path
    except LorafitError:
        return skip("the model's files cannot be read; see model.files")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    known = [(path, recorded) for path in files if (recorded := recorded_hash(path))]
    if not known:
        return skip("no hashes were recorded with this folder; a download by `hf` records them")
    small = [entry for entry in known if entry[0].stat().st_size <= _QUICK_BYTES]
    chosen = known if probe.question.is_deep else small
    wrong = [path.name for path, recorded in chosen if not verify_hash(path, recorded)]
    measured = f"{len(chosen) - len(wrong)} of {len(known)} files match"
    if wrong:
        return error(
            f"changed since the download: {', '.join(wrong)}",
            "download these files again",
            f"hf download {probe.question.model} {' '.join(wrong)} --force-download",
            measured=measured,
        )
    left = len(known) - len(chosen)
    more = f"; {left} large files are hashed with --deep only" if left else ""
    return ok(f"{measured} what the hub recorded{more}", measured=measured)


@check(
    "tokenizer",
    "What you asked about",
    "Tokenizer",
    affects="text that does not survive the tokenizer is not what the model learns",
)
def tokenizer_round_trip(probe: Probe) -> Outcome:
    """Check end and padding tokens, and that text comes back as it went in."""
    if probe.question.model is None:
        return skip(_ASK)
    from lorafit.model.libraries import prepare_libraries
    from lorafit.model.tokenizer import choose_pad_token, tokenizer_of

    try:
        source = probe.model_source(need_weights=False)
        prepare_libraries()
        tokenizer = tokenizer_of(source)
    except LorafitError as problem:
        return error(str(problem), problem.hint or "download the model again")
    pad = choose_pad_token(tokenizer)
    facts = (
        f"{len(tokenizer):,} tokens for {source.config.get('vocab_size'):,} embeddings, "
        f"end {tokenizer.eos_token!r} ({tokenizer.eos_token_id}), padding {pad.token_id}: "
        f"{pad.reason}"
    )
    changed = [
        text
        for text in _SAMPLES
        if tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip() != text
    ]
    if changed:
        return warn(
            f"{facts}; text does not come back as it went in: {changed[0]!r}",
            "this tokenizer normalizes text, as some do; look at a row before you train",
            "lorafit data inspect FILE --model MODEL --show-mask 1",
        )
    return ok(f"{facts}; text comes back as it went in", measured=f"{len(tokenizer)} tokens")
