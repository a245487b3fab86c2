"""Data sets of the Hugging Face hub, through the `datasets` library; no code of theirs is run."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from lorafit.data.sources import HubSource
from lorafit.errors import DataError
from lorafit.text import excerpt

_TIMEOUT_SECONDS = 5.0


def iterate_hub_rows(source: HubSource) -> Iterator[dict[str, Any]]:
    """Yield the rows of a hub data set, downloaded once and then read from the cache.

    Raises:
        DataError: the hub cannot be reached and the data set is not in the cache, it does not
            exist or needs a login, or it has no such split.
    """
    dataset = _load(source)
    yield from dataset


def _load(source: HubSource) -> Any:
    unreachable = _probe(source)
    import datasets

    with _offline(datasets) if unreachable else nullcontext():
        try:
            return datasets.load_dataset(
                source.repository, source.configuration, split=source.split
            )
        except Exception as error:  # the library raises its own, httpx's and pyarrow's errors
            raise _explain(source, error, unreachable) from None


def _probe(source: HubSource) -> str | None:
    """Return why the hub cannot be reached, or None: one short request instead of minutes.

    The library itself would try each file six times with growing pauses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().dataset_info(source.repository, timeout=_TIMEOUT_SECONDS)
    except GatedRepoError:
        page = f"https://huggingface.co/datasets/{source.repository}"
        raise DataError(
            "this data set is gated: its owner asks people to accept terms first",
            where=source.repository,
            hint=f"accept the terms on {page}, then: hf auth login",
        ) from None
    except RepositoryNotFoundError:
        raise DataError(
            "the hub has no such data set, or it is private",
            where=source.repository,
            hint="check the name; for a private data set: hf auth login",
        ) from None
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except Exception as error:  # whatever the HTTP library calls a dead network
        return excerpt(str(error), 120) or type(error).__name__
    return None


def _explain(source: HubSource, error: Exception, unreachable: str | None) -> DataError:
    if unreachable:
        return DataError(
            f"the hub cannot be reached ({unreachable}) and this data set is not in the cache",
            where=source.repository,
            hint="with a network: "
            f"hf download --repo-type dataset {source.repository} --local-dir DIR; "
            "then --data DIR/FILE",
        )
    text = str(error)
    hint = "see the data set's page for its splits and configurations"
    if "onfig name is missing" in text:
        hint = f"name one of them: --data {source.repository}:CONFIGURATION"
    elif "script" in text:
        hint = "data sets that need their own code are not run: use one that holds data files"
    elif "split" in text:
        hint = "name one of them: --data-split NAME"
    return DataError(excerpt(text, 300), where=source.name, hint=hint)


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    previous = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = previous
