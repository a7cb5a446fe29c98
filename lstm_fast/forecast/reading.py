"""A CSV file as a long frame: what its columns and dates mean is guessed, and told."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from lstm_fast.forecast.frame import are_of_one_day, check_covariates, check_future, infer_freq

_TIME_NAMES = ("ds", "date", "datetime", "timestamp", "time", "month", "week", "day", "year")
_ID_NAMES = ("unique_id", "id", "series", "series_id", "item", "item_id", "sku", "store", "name")
_TARGET_NAMES = ("y", "value", "target", "sales", "demand", "quantity", "count")
# Numbers in columns so named say which row it is; pandas calls a column Unnamed that has no name.
_ROW_NAMES = (*_TIME_NAMES, "quarter", "weekday", "hour", "minute", "index", "row", "")
# So end the names of numbers that tell rows or series apart, which are not forecast.
_NUMBERING = re.compile(r"(^|[\W_])(id|nr|no|nbr|number|code)$")
_STANDARD_INPUT = Path("-")
_SEPARATORS = (",", ";", "\t", "|")
_SAMPLE_ROWS = 200
# How programs write that a value is missing.
_MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None", "-")
_TRUTH = {"True": 1.0, "TRUE": 1.0, "true": 1.0, "False": 0.0, "FALSE": 0.0, "false": 0.0}


@dataclass(frozen=True)
class Columns:
    """Names of the columns to use; None for one that is to be guessed."""

    unique_id: str | None = None
    ds: str | None = None
    y: str | None = None
    covariates: Sequence[str] = ()


@dataclass(frozen=True)
class DateForm:
    """How the dates of a column are written, as far as one alone may not show it."""

    day_first: bool | None = None
    """Whether dates such as 03/04/2020 have the day first; None if there are no such dates."""
    of_clocks: bool | None = None
    """Whether times of several offsets are taken as clocks showed them, rather than in UTC; None if
    there are no such times."""
    month_and_year: str | None = None
    """The order of both in dates such as Jan-15, ``%m-%y`` or ``%y-%m``; None if there are no such
    dates."""


@dataclass(frozen=True)
class Reading:
    frame: pd.DataFrame
    """``unique_id``, ``ds``, ``y`` and covariates; the index is the line in the file."""
    names: Columns
    """What the columns are called in the file; ``unique_id`` is None where it has none."""
    date_form: DateForm
    of_months: bool
    """Whether dates are of one day of the month, and taken as its first."""
    decimals: dict[str, str | None]
    """The sign before decimals of each column, if it was given or the column shows it."""
    guesses: list[str] = field(default_factory=list)
    """One sentence for each thing that was guessed."""


def read_series(path: Path, columns: Columns = Columns(), decimal: str | None = None) -> Reading:
    """Read a file with a header and one row for each timestamp of each series.

    Args:
        path: ``-`` for the standard input.
        decimal: the sign before decimals, ``"."`` or ``","``; the other one may set off thousands.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line, if a row cannot be read.
    """
    if decimal not in (None, ".", ","):
        raise ValueError(f"decimal must be '.' or ','. Got {decimal!r}")
    written, table, guesses, decimals = _read_table(path, decimal)
    id_is_guessed = columns.unique_id is None
    columns = _guess_columns(table, columns, guesses)
    assert columns.ds is not None
    assert columns.y is not None
    if columns.unique_id is None:
        ids: Any = columns.y
        guesses.append(f"no column names a series: all rows are of one, called {columns.y!r}")
    else:
        ids = _ids(written[columns.unique_id])
    ds = written[columns.ds]
    if _are_weeks(ds.drop_duplicates().str.strip()):
        guesses.append(
            f"dates such as {ds.iloc[0]!r} are weeks of ISO 8601, taken as their Mondays"
        )
    if _are_spans(ds.drop_duplicates().str.strip()):
        guesses.append(f"dates such as {ds.iloc[0]!r} are taken as their first days")
    form = _form_of(ds)
    if form.day_first is not None:
        order = "day before month" if form.day_first else "month before day"
        guesses.append(f"dates such as {ds.iloc[0]!r} have the {order}")
    if form.of_clocks is not None:
        how = "as clocks showed them" if form.of_clocks else "in UTC"
        guesses.append(f"times are of several offsets and are taken {how}")
    if form.month_and_year is not None:
        order = "month and year" if form.month_and_year == "%m-%y" else "year and month"
        guesses.append(f"dates such as {ds.iloc[0]!r} are {order}")
    dates = _dates(ds, form)
    if not ds.str.contains(_FOUR_DIGITS).any():
        guesses.append(f"years of two digits are {_LAST_YEAR - 99} to {_LAST_YEAR}")
    of_months = _are_of_months(dates)
    if of_months:
        guesses.append(f"dates such as {ds.iloc[0]!r} stand for months, and are taken as the first")
        dates = _first_of_month(dates)
    frame = pd.DataFrame({"unique_id": ids, "ds": dates})
    if id_is_guessed:
        _reject_repeated(frame, columns.ds)
    for name, column in (("y", columns.y), *((name, name) for name in columns.covariates)):
        sign = decimals[column]
        frame[name] = _numbers(table[column], written[column], sign, guesses)
        if decimal is None and sign is not None:
            guesses.append(f"decimals of column {column!r} follow {sign!r}, by its thousands")
    frame = _without_future(frame, columns.y, guesses)
    return Reading(frame, columns, form, of_months, decimals, guesses)


def _reject_repeated(frame: pd.DataFrame, ds: str) -> None:
    repeated = frame.duplicated()
    if repeated.any():
        row = frame[repeated].iloc[0]
        raise ValueError(
            f"series {row['unique_id']!r} has {row['ds']} more than once in {ds} "
            f"(line {row.name}); give --id-col if another column names the series"
        )


def _without_future(frame: pd.DataFrame, y: str, guesses: list[str]) -> pd.DataFrame:
    """Without the rows after the last value of all series, which are there to be filled in."""
    later = frame["ds"] > frame["ds"][frame["y"].notna()].max()
    if later.any():
        guesses.append(
            f"{later.sum()} rows at the end have no {y} (line {frame.index[later][0]}) and are "
            "left out, as what is to be forecast"
        )
    return frame[~later]


def read_future(path: Path, reading: Reading, future: pd.DataFrame) -> pd.DataFrame:
    """The covariates of the rows `future`, from a file with columns of the same names, and dates
    written as in the other.

    Raises:
        ValueError: if a row, a column or a value is missing.
    """
    names = reading.names
    assert names.ds is not None
    written, table, _, decimals = _read_table(path, None, reading.decimals)
    wanted = [names.ds, *names.covariates, *([names.unique_id] if names.unique_id else [])]
    _check_names(table, wanted)
    ids = _ids(written[names.unique_id]) if names.unique_id else names.y
    ds = written[names.ds]
    dates = _dates(ds, _form_of(ds, reading.date_form))
    if reading.of_months:
        dates = _first_of_month(dates)
    frame = pd.DataFrame({"unique_id": ids, "ds": dates})
    for name in names.covariates:
        frame[name] = _numbers(table[name], written[name], decimals[name], [])
    wanted_rows = future["unique_id"], future["ds"]
    return check_future(frame, *wanted_rows, names.covariates, name_of(path))


def name_of(path: Path, short: bool = False) -> str:
    """As messages call it; without its folder if `short`."""
    if path == _STANDARD_INPUT:
        return "the standard input"
    return path.name if short else str(path)


def _read_table(
    path: Path, decimal: str | None, known: dict[str, str | None] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, list[str], dict[str, str | None]]:
    """What is written in the file, the same with decimals that follow a point, what was guessed to
    read it, and the sign before decimals of each column, if it is `known` or shows. All of it stays
    text: as numbers, 007 would be 7 and October 2020, written 2020.10, would be January."""
    name = name_of(path)
    try:
        content = _content(path)
        sample = [line for line, _ in zip(_lines_of(content), range(_SAMPLE_ROWS), strict=False)]
        separator = _separator(sample, name)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            table = pd.read_csv(
                io.BytesIO(content),
                sep=separator,
                encoding="utf-8-sig",
                dtype=str,
                keep_default_na=False,
                na_values=[""],
                skip_blank_lines=False,
                index_col=False,
            )
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be text in UTF-8 or UTF-16: {error}") from error
    except pd.errors.ParserError as error:
        if "EOF inside string" in str(error):
            line = _last_row(content, separator)
            raise ValueError(f"line {line} of {name} has a quotation that does not end") from error
        raise ValueError(f"{name} cannot be read: {error}") from error
    table = table.fillna("")
    table.index = _lines(table)
    written = table[(table != "").any(axis=1)]
    if written.empty:
        raise ValueError(f"{name} has a header and no rows")
    table = written.copy()
    with_decimal_commas = []
    known = known or {}
    decimals = {n: decimal or known.get(n) or _shown_decimal(written[n]) for n in table.columns}
    for column, sign in decimals.items():
        if sign is not None:
            table[column] = _with_points(written[column], sign)
    if separator != ",":
        unknown = [column for column, sign in decimals.items() if sign is None]
        with_decimal_commas = _with_decimal_commas(written[unknown])
        for column in with_decimal_commas:
            table[column] = table[column].str.replace(",", ".", regex=False)
    guesses = []
    if separator != ",":
        guesses.append(f"columns are separated by {separator!r}")
    if with_decimal_commas:
        guesses.append("decimals follow a comma")
    if any(warning.category is pd.errors.ParserWarning for warning in warned):
        _reject_surplus(content, separator)
    return written, table, guesses, decimals


def _content(path: Path) -> bytes:
    if path == _STANDARD_INPUT:
        content = sys.stdin.buffer.read()
    elif path.is_file() or path.is_fifo():
        content = path.read_bytes()
    else:
        found = f"{path} is no regular file" if path.exists() else f"there is no file {path}"
        raise FileNotFoundError(found)
    # So Excel saves what it calls Unicode text.
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16").encode() if is_utf16 else content


def _lines_of(content: bytes) -> TextIO:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")


def _reject_surplus(content: bytes, separator: str) -> None:
    """Lines with more cells than the header, as numbers with a comma of their own make them; not
    those that end in a separator, after which nothing stands."""
    lines = csv.reader(_lines_of(content), delimiter=separator)
    names = next(lines)
    for cells in lines:
        if any(cell.strip() for cell in cells[len(names) :]):
            raise ValueError(
                f"line {lines.line_num} has {len(cells)} cells, and the header names "
                f"{len(names)} columns. Got {cells}. A number that holds a {separator!r} must "
                "stand in quotes, or columns be separated by another sign"
            )


def _last_row(content: bytes, separator: str) -> int:
    """The line in which the last row begins: of a quotation that does not end, all the rest."""
    lines = csv.reader(_lines_of(content), delimiter=separator)
    begin = after = 1
    try:
        for _ in lines:
            begin, after = after, lines.line_num + 1
    except csv.Error:  # the rest is more than it takes for a cell
        return after
    return begin


def _lines(table: pd.DataFrame) -> pd.Index:
    """The line of the file in which each row begins."""
    lines = pd.RangeIndex(2, len(table) + 2, name="line")
    # A text in quotes may go on in the next line.
    broken = [table[name] for name in table if table[name].str.contains("\n", regex=False).any()]
    in_header = sum(str(name).count("\n") for name in table)
    if not broken and not in_header:
        return lines
    more = sum((column.str.count("\n") for column in broken), start=pd.Series(0, table.index))
    before = more.shift(fill_value=0).cumsum().to_numpy()
    return pd.Index(lines + in_header + before, name="line")


def _separator(sample: list[str], name: str) -> str:
    if not "".join(sample).strip():
        raise ValueError(f"{name} is empty")
    header = next(csv.reader(sample[:1]))
    if all(re.fullmatch(r"[-+.\d/: ]+", cell.strip()) for cell in header):
        raise ValueError(f"{name} must begin with a header that names the columns. Got {header}")
    unquoted = re.sub('"[^"]*"', "", sample[0])
    found = max(_SEPARATORS, key=unquoted.count)
    if found not in unquoted:
        raise ValueError(f"{name} must have two columns at least. Got the header {header}")
    return found


def _with_decimal_commas(table: pd.DataFrame) -> list[str]:
    """The columns of numbers whose decimals follow a comma."""
    found = []
    for name, column in table.items():
        some = column[column.ne("")].head(_SAMPLE_ROWS)
        if some.str.contains(r"\d\.\d").any() or not some.str.contains(r"\d,\d").any():
            continue
        if _holds_numbers(some.str.replace(",", ".", regex=False)):
            found.append(str(name))
    return found


def _shown_decimal(column: pd.Series) -> str | None:
    """The sign before decimals, if numbers such as 1.000,50 and 1,000,000 leave no other."""
    # So are articles and machines numbered, too.
    if column.str.fullmatch(r"\s*\d{1,3}(\.\d{3}){2,}\s*").all():
        return None
    shown = []
    for sign, other in ((".", ","), (",", ".")):
        groups = rf"(\{other}\d{{3}})"
        numbers = rf"\s*[-+]?\d{{1,3}}({groups}+\{sign}\d+|{groups}{{2,}})\s*"
        if column.str.fullmatch(numbers).any():
            shown.append(sign)
    return shown[0] if len(shown) == 1 else None


def _with_points(column: pd.Series, decimal: str) -> pd.Series:
    """Numbers with a point before decimals, where `decimal` is before them, and thousands that
    nothing sets off; a column of anything else as it is."""
    thousands = "," if decimal == "." else "."
    digits = rf"(\d*|\d{{1,3}}(\{thousands}\d{{3}})+)(\{decimal}\d*)?([eE][-+]?\d+)?"
    is_number = column.str.fullmatch(rf"\s*[-+]?{digits}\s*")
    plain = column.str.replace(thousands, "", regex=False).str.replace(decimal, ".", regex=False)
    # 10.5 is none where decimals follow a comma.
    is_other = ~is_number & pd.to_numeric(column, errors="coerce").notna()
    plain = plain.where(is_number, column).mask(is_other, "")
    return plain if _holds_numbers(column) or _holds_numbers(plain) else column


def _check_thousands(numbers: pd.Series, guesses: list[str]) -> None:
    """Refuse numbers such as 1,001 or 1.001 beside 953, whose signs may be of thousands; by
    themselves they are told."""
    for sign, name in ((",", "comma"), (".", "point")):
        with_sign = numbers[numbers.str.contains(sign, regex=False)]
        of_thousands = rf"\s*-?[1-9]\d{{0,2}}(\{sign}\d{{3}})+\s*"
        if with_sign.empty or not with_sign.head(_SAMPLE_ROWS).str.fullmatch(of_thousands).all():
            continue
        line = with_sign.index[0]
        if numbers.str.fullmatch(r"\s*-?\d{1,3}\s*").any():
            raise ValueError(
                f"line {line}: {numbers.name} must be a number without a {name} for thousands. "
                f"Got {with_sign[line]!r}; give decimal, '.' or ',', if it is one"
            )
        guesses.append(
            f"numbers such as {with_sign[line]!r} in column {numbers.name!r} have decimals, not "
            "thousands"
        )


def _check_names(table: pd.DataFrame, names: Iterable[str]) -> None:
    for name in names:
        if name not in table.columns:
            raise ValueError(f"there is no column {name!r}. The columns are {list(table.columns)}")


def _guess_columns(table: pd.DataFrame, given: Columns, guesses: list[str]) -> Columns:
    covariates = check_covariates(given.covariates, "the columns of covariates")
    columns = (given.unique_id, given.ds, given.y, *covariates)
    stated = [name for name in columns if name is not None]
    _check_names(table, stated)
    if twice := [name for name in stated if stated.count(name) > 1]:
        raise ValueError(f"column {twice[0]!r} is given for two things")
    free = [name for name in table.columns if name not in stated]
    ds = given.ds or _named(free, _TIME_NAMES) or _first(free, lambda n: _is_date(table[n]))
    if ds is None:
        raise ValueError(f"no column holds dates. The columns are {list(table.columns)}")
    free = [name for name in free if name != ds]
    # An id that is another in each row names rows.
    unique_id = given.unique_id or _named(free, _ID_NAMES, lambda n: table[n].duplicated().any())
    free = [name for name in free if name != unique_id]
    numeric = [name for name in free if _holds_numbers(table[name])]
    y = given.y or _named(free, _TARGET_NAMES)
    if y is None:
        values = [name for name in numeric if not _names_rows(name)]
        values = [name for name in values if not _is_numbering(name)] or values
        values = [name for name in values if _varies(table[name])] or values
        y = values[0] if values else None
    if y is None and len(free) == 1:
        y = free[0]  # a column of numbers with a bad one among them: the error will name its line
    if y is None:
        raise ValueError(f"no column holds numbers to forecast. The columns are {list(table)}")
    free = [name for name in free if name != y]
    if unique_id is None and table[ds].duplicated().any():
        may_name = [
            name
            for name in free
            if (name not in numeric or _is_numbering(name)) and _may_name_series(table[name])
        ]
        may_name = [n for n in may_name if not table.duplicated([ds, n]).any()] or may_name
        unique_id = may_name[0] if may_name else None
        free = [name for name in free if name != unique_id]
    found = [(n, w) for n, g, w in ((ds, given.ds, "time"), (y, given.y, "values")) if g is None]
    if unique_id is not None and given.unique_id is None:
        found.append((unique_id, "series"))
    guesses.extend(f"column {name!r} holds the {what}" for name, what in found)
    if free:
        guesses.append(f"columns {free} are not used")
    return Columns(unique_id, ds, y, given.covariates)


def _named(names: list[str], wanted: Sequence[str], holds: Any = lambda _: True) -> str | None:
    lower = {str(name).strip().lower(): name for name in reversed(names)}
    return _first([lower[name] for name in wanted if name in lower], holds)


def _first(names: list[str], holds: Any) -> str | None:
    return next((name for name in names if holds(name)), None)


def _holds_numbers(column: pd.Series) -> bool:
    """Most of them, so that the line of one that is none can be named."""
    return bool(2 * _to_numbers(column).notna().sum() > (~column.isin(_MISSING)).sum())


def _names_rows(name: str) -> bool:
    return name.strip().lower() in _ROW_NAMES or bool(re.fullmatch(r"Unnamed: \d+", name))


def _is_numbering(name: str) -> bool:
    return bool(_NUMBERING.search(name.strip().lower()))


def _varies(column: pd.Series) -> bool:
    """As values do; not by 1 in each row, nor between yes and no alone."""
    numbers = _to_numbers(column).dropna()
    return not (
        numbers.nunique() == 1 or numbers.isin([0, 1]).all() or (numbers.diff()[1:] == 1).all()
    )


def _may_name_series(column: pd.Series) -> bool:
    return bool(column.duplicated().any()) and not column.str.fullmatch(_TIME_OF_DAY).all()


def _is_date(column: pd.Series) -> bool:
    sample = column.head(_SAMPLE_ROWS)
    # No number is written as 01.2015 is.
    are_months = sample.str.fullmatch(r"\s*[01]\d\.\d{4}\s*") & sample.str.contains(r"^\s*0").any()
    if (_to_numbers(sample).notna() & ~are_months).any():
        return False
    try:
        _dates(sample, _form_of(sample))
    except ValueError:
        return False
    return True


def _ids(column: pd.Series) -> pd.Series:
    if column.eq("").any():
        line = column.index[column.eq("")][0]
        raise ValueError(f"line {line} has no {column.name}")
    return column


def _to_numbers(column: pd.Series) -> pd.Series:
    """NaN for what is missing and for what is no number."""
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    return numbers.fillna(column.map(_TRUTH)) if numbers.isna().any() else numbers


def _numbers(
    column: pd.Series, written: pd.Series, decimal: str | None, guesses: list[str]
) -> pd.Series:
    """Of a column whose decimals follow a point, and as it stands in the file, where they follow
    `decimal` if that was given."""
    if decimal is None:
        _check_thousands(written, guesses)
    numbers = _to_numbers(column)
    bad = numbers.isna() & ~written.str.strip().isin(_MISSING)
    if bad.any():
        line = column.index[bad][0]
        raise ValueError(
            f"line {line}: {column.name} must be a number. "
            f"Got {written[line]!r}{_in_the_way(written[line], decimal)}"
        )
    return numbers


def _in_the_way(cell: str, decimal: str | None) -> str:
    """Of a number that cannot be read."""
    if decimal is None and re.fullmatch(r"\s*[-+]?\d{1,3}([.,]\d{3})+([.,]\d+)?\s*", cell):
        return "; give decimal, '.' or ',', if it has a sign for thousands"
    signs = "".join(dict.fromkeys(re.findall(r"[^\d.,+-]", cell.strip())))
    return f", which holds {signs.strip() or signs!r}" if signs and re.search(r"\d", cell) else ""


_TIME_OF_DAY = r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[AaPp]\.?[Mm]\.?)?"
# A day of the week or a time may stand before them.
_DAY_AND_MONTH = (
    r"^\s*(?:[^\W\d]+\.?,?\s+|\d{1,2}:[\d:.]+\s+)?"
    r"(\d{1,2})\s*[/. -]\s*(\d{1,2})\s*[/. -]\s*\d{2,4}"
)


# Of years of two digits, which are 1969 to 2068, as in POSIX.
_LAST_YEAR = 2068
_FOUR_DIGITS = r"\d{4}"
_YEAR = r"(?P<year>\d{4}|\d{2})"
# Months and quarters, of which pandas would read some as days.
_MONTHS = (
    r"(?P<year>\d{4})[ -]?M(?P<month>\d{1,2})",
    r"(?P<month>\d{1,2})[./ -](?P<year>\d{4})",
    # T as in trimestre: so write the offices of France, Spain, Italy and Portugal.
    rf"{_YEAR}[ /-]?[QT](?P<quarter>[1-4])",
    rf"[QT](?P<quarter>[1-4])[ /-]?{_YEAR}",
    rf"(?P<quarter>[1-4])[QT][ /-]?{_YEAR}",
)

_MONTH_NAME = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"

_DAY = r"\d{4}-\d{2}-\d{2}"

# A time of day, and what it is ahead of UTC.
_OFFSET = r"(\d{1,2}:\d{2}\S*?)([+-]\d{2}:?\d{2})$"
_ZONE = r":\d{2}\S*(?:Z|[+-]\d{2}(?::?\d{2})?)$"
# pandas takes GMT+1 for an hour behind GMT, as POSIX does, where files mean an hour ahead.
_AHEAD_OF = r"(?i)\s*(?:GMT|UTC)(?=[+-]\d)"


def _form_of(column: pd.Series, known: DateForm = DateForm()) -> DateForm:
    """Of all dates of a column, where it is not `known` from others."""
    text = _as_dated(column.drop_duplicates())
    return DateForm(
        _is_day_first(text) if known.day_first is None else known.day_first,
        _is_of_clocks(text) if known.of_clocks is None else known.of_clocks,
        _month_and_year(text) if known.month_and_year is None else known.month_and_year,
    )


def _dates(column: pd.Series, form: DateForm) -> pd.Series:
    written = column.drop_duplicates()  # many series share their timestamps
    dates = _parsed_dates(_as_dated(written), form)
    return column.map(dates.set_axis(written))


def _as_dated(text: pd.Series) -> pd.Series:
    """With what times are ahead of UTC right after them."""
    return text.str.strip().str.replace(_AHEAD_OF, "", regex=True)


def _parsed_dates(text: pd.Series, form: DateForm) -> pd.Series:
    missing = text.isin(_MISSING)
    if missing.any():
        raise ValueError(f"line {text.index[missing][0]} has no {text.name}")
    if _are_spans(text):
        return _parsed(text.str[:10], "%Y-%m-%d", shown=text)
    if text.str.fullmatch(r"\d{4}").all():
        return _parsed(text, "%Y")
    if _are_weeks(text):
        return _parsed(text.str.replace(r"\D", "", regex=True) + "1", "%G%V%u")
    if text.str.fullmatch(r"\d{6}").all():
        _reject_days_of_six_digits(text)
        return _parsed(text, "%Y%m")
    if text.str.fullmatch(r"\d{8}").all():
        return _parsed(text, "%Y%m%d")
    hours = text.str.fullmatch(_TIME_OF_DAY)
    if hours.any():  # pandas would make times of today of them
        line = text.index[hours][0]
        raise ValueError(f"line {line}: {text.name} must be a date. Got {text[line]!r}")
    _reject_years_of_two(text)
    for written in _MONTHS:
        months = text.str.extract(f"^{written}$", flags=re.IGNORECASE)
        if months.notna().all(axis=None):
            return _first_of_months(text, months)
    pairs = _pairs(text)
    if pairs.notna().all():
        if form.month_and_year is not None:
            return _parsed(pairs, form.month_and_year, shown=text)
        _reject_without_year(text)
    parts = text.str.extract(_DAY_AND_MONTH)
    if parts.notna().all(axis=None):
        return _day_month_year(text, parts.astype(int), bool(form.day_first))
    if form.of_clocks:
        return _parsed(text.str.replace(_OFFSET, r"\1", regex=True), "ISO8601")
    if text.str.extract(_OFFSET)[1].nunique() > 1:
        return _parsed(text, "ISO8601", utc=True)
    # pandas 2, the newest for Python 3.10, takes those without a zone for some of the first one's.
    if text.str.contains(_ZONE).nunique() > 1:
        _reject_other_zone(text)
    try:
        return pd.to_datetime(text, format="ISO8601")
    except (ValueError, TypeError):
        _reject_several_orders(text, parts.notna().all(axis=1))
        return _parsed(text, "mixed")


def _first_of_months(text: pd.Series, parts: pd.DataFrame) -> pd.Series:
    """Dates of a ``year`` and a ``month`` or a ``quarter``."""
    years = parts["year"]
    years = years.where(years.str.len() == 4, years.map(_with_century))
    months = parts["month"] if "month" in parts else 3 * parts["quarter"].astype(int) - 2
    return _parsed(years + "-" + months.astype(str), "%Y-%m", shown=text)


def _with_century(year: str) -> str:
    """Of a year of two digits."""
    return ("20" if f"20{year}" <= str(_LAST_YEAR) else "19") + year


def _are_spans(text: pd.Series) -> bool:
    """Dates such as 2020-01-06/2020-01-12."""
    return bool(text.str.fullmatch(rf"{_DAY}\s*(/|-+|\u2013|\.\.|to)\s*{_DAY}").all())


def _are_weeks(text: pd.Series) -> bool:
    """Dates such as 2018-W01, or 201801 in a column that is named after weeks."""
    mark = "W?" if "week" in str(text.name).lower() else "W"
    return bool(text.str.fullmatch(rf"\d{{4}}-?{mark}\d{{2}}").all())


def _reject_years_of_two(text: pd.Series) -> None:
    """Dates such as 2000-01, 2001-02, of years that end in the next one; as months they would be 13
    apart."""
    years = text.str.extract(r"^(\d{4})[/-](\d{2})$").astype("float64")
    if len(text) > 1 and (years[1] == (years[0] + 1) % 100).all():
        raise ValueError(
            f"line {text.index[0]}: {text.name} must have one year, as {years[0].iloc[0]:.0f}, or "
            f"be a date. Got {text.iloc[0]!r}"
        )


def _reject_days_of_six_digits(text: pd.Series) -> None:
    """Dates such as 190101, 190201, which as months would all be of January."""
    if len(text) < 3 or not text.str.endswith("01").all():
        return
    if _irregular(text, "%y%m%d") <= _irregular(text, "%Y%m"):
        raise ValueError(
            f"line {text.index[0]}: {text.name} must have years of four digits before days. "
            f"Got {text.iloc[0]!r}"
        )


def _reject_several_orders(text: pd.Series, in_order: pd.Series) -> None:
    """Dates of which each might be read in an order of its own, as `in_order` are some alone."""
    readings = [_parsed(text, "mixed", first) for first in (False, True)]
    unclear = (readings[0] != readings[1]) & ~text.str.match(r"\d{4}")
    if not unclear.any():
        return
    if not in_order.any():
        line = text.index[unclear][0]
        raise ValueError(
            f"line {line}: {text.name} must show which number is the month, as 2020-01-31 does. "
            f"Got {text[line]!r}"
        )
    odd = in_order if in_order.mean() < 0.5 else ~in_order
    line = text.index[odd][0]
    raise ValueError(
        f"line {line}: {text.name} must be written in one way in all lines. "
        f"Got {text[line]!r} beside {text[~odd].iloc[0]!r}"
    )


def _reject_without_year(text: pd.Series) -> None:
    """Those of some dates that have none of four digits."""
    bad = ~text.str.contains(_FOUR_DIGITS)
    if bad.any():
        line = text.index[bad][0]
        raise ValueError(
            f"line {line}: {text.name} must be a date. Got {text[line]!r}, which has no year, or "
            "one of two digits that may be a day"
        )


def _pairs(text: pd.Series) -> pd.Series:
    """Dates such as Jan-15 and 01/15 as 01-15; missing for others."""
    numbers = text.str.replace(_MONTH_NAME, _number_of_month, flags=re.IGNORECASE, regex=True)
    pairs = numbers.str.extract(r"^\W*(\d{1,2})\W+(\d{1,2})\W*$")
    return (pairs[0] + "-" + pairs[1]).where(~text.str.contains(":"))


def _number_of_month(name: re.Match[str]) -> str:
    return f" {_MONTH_NAME.index(name[1].lower()) // 4 + 1:02} "


def _month_and_year(text: pd.Series) -> str | None:
    """The order of both in dates such as Jan-15, 15-Jan and 01/15; None for others, and where they
    may as well be days without a year."""
    pairs = _pairs(text)
    if pairs.isna().any():
        return None
    orders = {"%m-%y": "%m-%d", "%y-%m": "%d-%m"}  # and those of days
    name_first = text.str.match("[a-z]", case=False)
    if text.str.contains("[a-z]", case=False).any():
        del orders["%y-%m" if name_first.any() else "%m-%y"]
    months = {order: _irregular(pairs, order) for order in orders}
    days = min(_irregular(pairs + "-2000", f"{order}-%Y") for order in orders.values())
    best = min(months, key=lambda order: months[order])
    # As Excel writes months by default; days stand before their names there.
    as_likely = name_first.all() and months[best] == days < math.inf
    return best if months[best] < days or as_likely else None


def _is_of_clocks(column: pd.Series) -> bool | None:
    """Whether times of several offsets are all of one time of day, as midnights are across a change
    of the clock, but not in UTC; None if there are no such times."""
    text = column.drop_duplicates().str.strip()
    if text.str.extract(_OFFSET)[1].nunique() < 2:
        return None
    local = text.str.replace(_OFFSET, r"\1", regex=True)
    here = pd.to_datetime(local, format="ISO8601", errors="coerce", utc=True).dt.time
    in_utc = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True).dt.time
    return here.nunique() == 1 and in_utc.nunique() > 1


def _is_day_first(column: pd.Series) -> bool | None:
    """Whether dates such as 03/04/2020 have the day first; None if there are no such dates."""
    text = column.drop_duplicates()
    parts = text.str.extract(_DAY_AND_MONTH)
    if parts.isna().any(axis=None):
        return None
    _reject_years_first(text)
    parts = parts.astype(int)
    if (parts[0] > 12).any() or (parts[1] > 12).any():
        return bool((parts[0] > 12).any())
    readings = {
        first: pd.DatetimeIndex(_parsed(text, "mixed", first).unique()).sort_values()
        for first in (False, True)
    }
    # With rows missing neither may be regular: the right one has fewer missing. Where both have
    # as many, nobody writes dots after a month.
    missing = {first: _missing_rows(ds) for first, ds in readings.items()}
    return missing[True] < missing[False] or (
        missing[True] == missing[False] and "." in text.iloc[0]
    )


def _reject_years_first(text: pd.Series) -> None:
    """Dates such as 24-01-31, whose first number is a year of two digits."""
    if not text.str.fullmatch(r"\s*\d{2}([/.-])\d{2}\1\d{2}(\s.*)?").all():
        return
    plain = text.str.strip().str.replace(r"[/.]", "-", regex=True).str[:8]
    forms = ("%y-%m-%d", "%d-%m-%y", "%m-%d-%y")
    years_first, *others = [_irregular(plain, form) for form in forms]
    if years_first < min(others):
        raise ValueError(
            f"line {text.index[0]}: {text.name} must have years of four digits, or the year last. "
            f"Got {text.iloc[0]!r}"
        )


def _irregular(text: pd.Series, form: str) -> float:
    """The share of steps between dates that are unlike the median step; infinite for dates of
    another form."""
    dates = pd.to_datetime(text, format=form, errors="coerce")
    if dates.isna().any():
        return math.inf
    steps = dates.drop_duplicates().sort_values().diff().dropna().dt.days
    # Months and years vary by no more.
    return float((abs(steps / steps.median() - 1) > 0.12).mean()) if len(steps) else 0.0


def _day_month_year(text: pd.Series, parts: pd.DataFrame, day_first: bool) -> pd.Series:
    """Dates such as 03/04/2020, of which one number is the day and the other the month."""
    late = parts.index[parts[int(day_first)] > 12]
    if len(late):
        order = "day before the month" if day_first else "month before the day"
        shown = parts.index[parts[int(not day_first)] > 12]
        as_others = f"line {shown[0]} has" if len(shown) else "the file of the series has"
        raise ValueError(
            f"line {late[0]}: {text.name} must have the {order}, as {as_others}. "
            f"Got {text[late[0]]!r}"
        )
    return _parsed(text, "mixed", day_first)


def _are_of_months(dates: pd.Series) -> bool:
    """Whether they are of one day of the month, not the first: pandas has no frequency of that."""
    stamps = pd.DatetimeIndex(dates.unique()).sort_values()
    # The last of December has one, once a year.
    return len(stamps) > 2 and are_of_one_day(stamps) and infer_freq(stamps) is None


def _first_of_month(dates: pd.Series) -> pd.Series:
    return dates - pd.to_timedelta(dates.dt.day - 1, unit="D")


def _missing_rows(ds: pd.DatetimeIndex) -> tuple[float, bool]:
    """How many timestamps there are not between the first and the last, about; of as many, those
    of a frequency and those of firsts of months are likelier than others."""
    if len(ds) < 2 or infer_freq(ds):
        return 0.0, False
    # Several of a day are hours, whatever the months.
    by_month = bool((ds.day == ds[0].day).all() and ds.normalize().is_unique)
    times = (12 * ds.year + ds.month if by_month else ds).to_series()
    steps = times.diff().dropna()
    missing = float((times.iloc[-1] - times.iloc[0]) / steps.median()) - len(steps)
    return max(0.0, missing), not (by_month and ds[0].day == 1)


def _reject_other_zone(text: pd.Series, error: ValueError | None = None) -> None:
    """Of dates that pandas takes for some of several zones, the first that is unlike the first."""
    dates = [pd.to_datetime(date, errors="coerce") for date in text]
    for line, date in zip(text.index, dates, strict=True):
        if date is pd.NaT or str(date.tz) != str(dates[0].tz):
            raise ValueError(
                f"line {line}: {text.name} must be a date, of the same zone in all lines. "
                f"Got {text[line]!r} beside {text.iloc[0]!r}"
            ) from error


def _parsed(
    text: pd.Series,
    form: str,
    day_first: bool = False,
    utc: bool = False,
    shown: pd.Series | None = None,
) -> pd.Series:
    """Errors show what is written, if that is not `text` itself."""
    shown = text if shown is None else shown
    # Of two days pandas would make a time and what it is ahead of UTC.
    dates = text.mask(text.str.contains(f"{_DAY}.+{_DAY}"))
    try:
        parsed = pd.to_datetime(dates, format=form, dayfirst=day_first, errors="coerce", utc=utc)
    except ValueError as error:
        _reject_other_zone(dates.dropna(), error)
        raise
    if form == "mixed":
        # pandas takes the year 1 for them, which pandas 2 has not.
        _reject_without_year(text[parsed.isna() | (parsed.dt.year < 1000)])
    if parsed.isna().any():
        line = text.index[parsed.isna()][0]
        raise ValueError(f"line {line}: {shown.name} must be a date. Got {shown[line]!r}")
    if form == "mixed":
        # pandas takes the century that is nearest today.
        ahead = (parsed.dt.year > _LAST_YEAR) & ~text.str.contains(_FOUR_DIGITS)
        if ahead.any():
            parsed = parsed.where(~ahead, parsed - pd.DateOffset(years=100))
    return parsed
