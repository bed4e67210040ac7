"""Text columns from csv, tsv, jsonl and parquet files, and the task that the user's own files make.

A value is always read as the text it is in the file: the labels `01`, `1.0`, `nan` and `None` are four
labels, and no character but a line feed or a carriage return ends a line.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bakeoff.errors import BakeoffError, unknown
from bakeoff.spec import RunSpec
from bakeoff.tasks.base import Part, Rows, Task

Column = list[str | None]  # None = the file has no value there
Row = tuple[str | None, ...]

_NAMES = 1_000  # of a jsonl file's columns that an error looks among
_ROWS, _BUFFER = 1024, 1 << 20  # rows and bytes of a parquet file that are read at a time
_SMALL = 1 << 26  # bytes of one that may be in memory as a whole


def rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The named columns of a file, in the order asked for, a row at a time and in constant memory.

    What is wrong with the file, its columns or its first row is said at once; the rest when it is reached.

    Raises:
        BakeoffError: the file cannot be read, or it has no row.
    """
    found = _rows(path, columns)
    return itertools.chain([next(found)], found)


def read(path: Path, columns: Sequence[str]) -> list[Column]:
    """The named columns of a file, in the order asked for, whole; at least one row, or an error."""
    return [list(column) for column in zip(*rows(path, columns), strict=True)]


def survey(path: Path, columns: Sequence[str]) -> tuple[int, str]:
    """A file's number of rows and the SHA-256 of the named columns; every row is then known to be valid."""
    digest, count = hashlib.sha256(), 0
    for row in rows(path, columns):
        digest.update(json.dumps(row).encode())
        count += 1
    return count, digest.hexdigest()


def _rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    kinds = ", ".join(READERS)
    empty = True
    try:
        if not path.exists():
            raise BakeoffError(f"no such file: {path}.")
        if not path.is_file():
            raise BakeoffError(f"{path} is not a file; give one of {kinds}.")
        if path.suffix.lower() not in READERS:
            raise BakeoffError(f"{path}: {path.suffix or 'no suffix'} is not supported; give one of {kinds}.")
        if not path.stat().st_size:
            raise BakeoffError(f"{path} is empty.")
        for row in READERS[path.suffix.lower()](path, columns):
            empty = False
            yield row
    except OSError as error:
        raise BakeoffError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    if empty:
        raise BakeoffError(f"{path}: there are columns and no rows.")


@dataclasses.dataclass(frozen=True)
class Files:
    """A training and an evaluation file of the user's own."""

    train: Path
    eval: Path

    def source(self, data_dir: str | None = None) -> str:
        """The two file names."""
        return f"files {self.train.name}, {self.eval.name}"

    def read(self, task: Task, part: Part, data_dir: str | None = None) -> Rows:
        """Every row of the part's file; a row without text or label is an error."""
        path = self.train if part == "train" else self.eval
        names = (*task.text_columns, task.label_column)
        columns = zip(names, read(path, names), strict=True)
        *texts, labels = (_complete(path, name, column) for name, column in columns)
        return dict(enumerate(zip(zip(*texts, strict=True), labels, strict=True)))


def own_task(spec: RunSpec) -> Task:
    """The task that `spec`'s files make; its labels are those of the training file."""
    texts, label = spec.text_columns, str(spec.label_column)
    if len(texts) > 2:
        raise BakeoffError(f"text_columns takes one or two columns, not {len(texts)}: {', '.join(texts)}.")
    if len({*texts, label}) != len(texts) + 1:
        raise BakeoffError(f"text and label columns must differ: {', '.join((*texts, label))}.")
    return Task(
        name=spec.task_name,
        description="own files",
        origin=Files(Path(str(spec.train_file)), Path(str(spec.eval_file))),
        text_columns=texts,
        label_column=label,
        metrics=("accuracy", "f1"),
    )


def _complete(path: Path, name: str, column: Column) -> list[str]:
    missing = [row for row, value in enumerate(column, 1) if value is None or not value.strip()]
    if missing:
        raise BakeoffError(
            f"{path}: column {name!r} is empty or missing in {len(missing)} of {len(column)} rows "
            f"(first: data row {missing[0]}); fill them in or leave these rows out."
        )
    return [value for value in column if value is not None]


def _positions(path: Path, columns: Sequence[str], header: Sequence[str]) -> list[int]:
    """Where the wanted columns are in the header."""
    if len(header) > len({*header}):
        double = min(name for name, count in Counter(header).items() if count > 1)
        raise BakeoffError(f"{path}: more than one column is called {double!r}; rename them.")
    for name in columns:
        if name not in header:
            raise BakeoffError(f"{path}: {unknown('column', name, header)}")
    return [header.index(name) for name in columns]


def _open(path: Path, newline: str) -> io.TextIOWrapper:
    """The file as text; `newline` as in `open`: "" keeps line feeds and carriage returns apart."""
    file = path.open(encoding="utf-8-sig", newline=newline)
    try:
        if all(line.isspace() for line in file):
            raise BakeoffError(f"{path} is empty.")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _not_utf8(path: Path) -> BakeoffError:
    """Where the first byte is that is not UTF-8, found in a second reading, by lines."""
    with path.open("rb") as file:
        likely = "UTF-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return BakeoffError(
                    f"{path}: byte 0x{line[error.start]:02x} in line {number} is not UTF-8; convert the "
                    f"file, such as with: iconv -f {likely} -t UTF-8 {path.name} > converted{path.suffix}"
                )
    return BakeoffError(f"{path} changed while it was read; start again.")


def _delimited_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not an empty line, with the line it begins in."""
    limit = csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is shorter than a long document
    line = 1
    try:
        with _open(path, newline="") as file:
            # `strict`, as otherwise a stray quotation mark swallows the rows up to the next one.
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1
    except csv.Error as error:
        raise BakeoffError(
            f"{path}: the row that begins in line {line} is not valid ({error}); a field that begins with a "
            "double quote must end with one, and those inside it are doubled."
        ) from None
    finally:
        csv.field_size_limit(limit)


def _read_delimited(path: Path, columns: Sequence[str], delimiter: str) -> Iterator[Row]:
    found = _delimited_rows(path, delimiter)
    _, header = next(found)
    positions = _positions(path, columns, header)
    for line, row in found:
        if len(row) != len(header):
            raise BakeoffError(
                f"{path}: the row that begins in line {line} has {len(row)} fields, the header has "
                f"{len(header)}; put texts that hold the separator in double quotes."
            )
        yield tuple(row[position] for position in positions)


def _read_csv(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    return _read_delimited(path, columns, ",")


def _read_tsv(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    return _read_delimited(path, columns, "\t")


def _read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Every row, once each column was found in one: lines may lack some names."""
    names: dict[str, None] = {}  # in their order
    missing = dict.fromkeys(columns)
    for _, row in _json_rows(path):
        names |= dict.fromkeys(itertools.islice(row, max(0, _NAMES - len(names))))
        missing = {name: None for name in missing if name not in row}
        if not missing:
            break
    for name in missing:
        raise BakeoffError(f"{path}: {unknown('column', name, names)}")
    for number, row in _json_rows(path):
        try:
            yield tuple(_json_text(name, row.get(name)) for name in columns)
        except ValueError as error:
            raise BakeoffError(f"{path}: line {number} is not valid: {error}.") from None


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object in every line that is not blank, with the line's number."""
    with _open(path, newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                # Numbers stay the text they are: 1.0 and 1 are two labels, as in a csv file.
                row = json.loads(
                    line.removesuffix("\n"),
                    parse_int=str,
                    parse_float=str,
                    parse_constant=_no_json,
                    object_pairs_hook=_no_double,
                )
                if not isinstance(row, dict):
                    raise ValueError('a line is an object, such as {"text": "…", "label": "…"}')
            except json.JSONDecodeError as error:
                raise BakeoffError(
                    f"{path}: line {number} is not valid JSON ({error.msg}, character {error.colno})."
                ) from None
            except (ValueError, RecursionError) as error:
                raise BakeoffError(f"{path}: line {number} is not valid: {error}.") from None
            yield number, row


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _no_double(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError(f"a name is there twice among {', '.join(name for name, _ in pairs)}")
    return values


def _json_text(name: str, value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name!r} holds a list or an object, not a text")
    value.encode()  # half of a surrogate pair, which JSON can escape, is no text: a ValueError
    return value


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Buffered before, all of a file ends up in memory; threads read ahead. A buffer grows to the size
        # that a page claims, up to 2 GiB, so a small file is read without one, a column at a time.
        small = path.stat().st_size <= _SMALL
        with pq.ParquetFile(path, buffer_size=0 if small else _BUFFER, pre_buffer=False) as file:
            _positions(path, columns, file.schema_arrow.names)
            for batch in file.iter_batches(_ROWS, columns=list(columns), use_threads=False):
                yield from zip(*(_parquet_text(path, name, batch[name]) for name in columns), strict=True)
    except pa.ArrowException as error:
        raise BakeoffError(f"{path}: not readable as parquet ({' '.join(str(error).split())}).") from None


def _parquet_text(path: Path, name: str, column: Any) -> Column:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type):  # dataframes write a missing number as NaN
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        texts: Column = column.cast(pa.string()).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError):
        raise BakeoffError(f"{path}: column {name!r} is no text, but {column.type}.") from None
    return texts


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
}
