"""CSV files as people have them."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path

import pandas as pd
import pytest

from lstm_fast.forecast.reading import Columns, read_future, read_series


@pytest.fixture
def write(tmp_path):
    def write(text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "series.csv"
        path.write_bytes(textwrap.dedent(text).lstrip().encode(encoding))
        return path

    return write


def test_one_series(write):
    reading = read_series(write("DATE,S4248\n1992-01-01,3459\n1992-02-01,3458\n"))
    assert list(reading.frame.columns) == ["unique_id", "ds", "y"]
    assert reading.frame["unique_id"].tolist() == ["S4248"] * 2
    assert reading.frame["ds"].tolist() == [*pd.to_datetime(["1992-01-01", "1992-02-01"])]
    assert reading.frame["y"].tolist() == [3459, 3458]
    assert reading.frame.index.tolist() == [2, 3]
    assert reading.names == Columns(None, "DATE", "S4248")
    assert "column 'DATE' holds the time" in reading.guesses


def test_a_file_is_text_whatever_its_name(write):
    path = write("ds,y\n2020-01-01,1\n2020-02-01,2\n")
    assert len(read_series(path.rename(path.with_suffix(".zip"))).frame) == 2


def test_many_series_with_columns_to_spare(write):
    text = "store,weight,when,sales\na,1,2020-01-01,5\na,1,2020-01-02,\nb,2,2020-01-02,7\n"
    path = write(text)
    reading = read_series(path)
    assert reading.names == Columns("store", "when", "sales")
    assert "columns ['weight'] are not used" in reading.guesses
    renamed = read_series(write(text.replace("sales", "tons")))
    assert renamed.names == Columns("store", "when", "weight")
    path = write(text)
    reading = read_series(path, Columns(y="sales", covariates=("weight",)))
    assert reading.names.unique_id == "store"
    assert reading.frame["weight"].tolist() == [1, 1, 2]
    assert reading.frame["y"].isna().tolist() == [False, True, False]
    assert not any("'sales' holds" in guess for guess in reading.guesses)


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        (["2020-01-31", "2020-02-29"], ["2020-01-31", "2020-02-29"]),
        (["2020-01-31 10:00", "2020-01-31T11:30:00"], ["2020-01-31 10:00", "2020-01-31 11:30"]),
        (["2020/01/31", "2020/02/29"], ["2020-01-31", "2020-02-29"]),
        (["20200131", "20200229"], ["2020-01-31", "2020-02-29"]),
        (["2019", "2020"], ["2019-01-01", "2020-01-01"]),
        (["2019-12", "2020-01"], ["2019-12-01", "2020-01-01"]),
        (["202009", "202010"], ["2020-09-01", "2020-10-01"]),
        (["2020.09", "2020.10"], ["2020-09-01", "2020-10-01"]),
        (["09.2020", "10.2020"], ["2020-09-01", "2020-10-01"]),
        (["9.2020", "10.2020"], ["2020-09-01", "2020-10-01"]),
        (["9/2020", "10/2020"], ["2020-09-01", "2020-10-01"]),
        (["2020Q1", "2020-q2"], ["2020-01-01", "2020-04-01"]),
        (["Jan 2020", "Feb 2020"], ["2020-01-01", "2020-02-01"]),
        (["31 January 2020", "1 February 2020"], ["2020-01-31", "2020-02-01"]),
        (["31/01/2020", "01/02/2020"], ["2020-01-31", "2020-02-01"]),
        (["01/31/2020", "02/01/2020"], ["2020-01-31", "2020-02-01"]),
        (["31.01.20", "01.02.20"], ["2020-01-31", "2020-02-01"]),
        (["31. 1. 2020", "1. 2. 2020"], ["2020-01-31", "2020-02-01"]),
        (["Fri 31/01/2020", "Sat 01/02/2020"], ["2020-01-31", "2020-02-01"]),
        (["Fri. 31.1.20", "Sat. 1.2.20"], ["2020-01-31", "2020-02-01"]),
        (["31 01 2020", "01 02 2020"], ["2020-01-31", "2020-02-01"]),
        (["31 / 01 / 2020", "01 / 02 / 2020"], ["2020-01-31", "2020-02-01"]),
        (["10:00 31/01/2020", "10:00 01/02/2020"], ["2020-01-31 10:00", "2020-02-01 10:00"]),
        (["2020 01 31", "2020 02 01"], ["2020-01-31", "2020-02-01"]),
        (["200101", "200102", "200103"], ["2001-01-01", "2001-02-01", "2001-03-01"]),
        (["1. 1. 2020", "1. 2. 2020", "1. 3. 2020"], ["2020-01-01", "2020-02-01", "2020-03-01"]),
        # Both readings are regular here.
        (["01/02/2020", "01/03/2020", "01/04/2020"], ["2020-01-02", "2020-01-03", "2020-01-04"]),
        (["01/02/2020", "01/04/2020", "01/06/2020"], ["2020-01-02", "2020-01-04", "2020-01-06"]),
    ],
)
def test_formats_of_dates(write, dates, expected):
    rows = "".join(f"{date},{k}\n" for k, date in enumerate(dates))
    reading = read_series(write(f"date,value\n{rows}"))
    assert reading.frame["ds"].tolist() == [*pd.to_datetime(expected)]


TWELVE = range(1, 13)
MARCH = pd.date_range("2020-03-01", periods=12)


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        # As months these fall on a third, which series of months hardly do.
        ([f"{day:02}.03.2020" for day in TWELVE], MARCH),
        ([f"{day:02}/03/2020" for day in TWELVE], MARCH),
        ([f"03/{day:02}/2020" for day in reversed(TWELVE)], MARCH[::-1]),
        ([f"{day:02}.03.2020" for day in range(2, 11)], MARCH[1:10]),
        ([f"{day:02}.03.2020" for day in TWELVE if day != 5], MARCH.delete(4)),
        (
            [f"01/{month:02}/2020" for month in TWELVE if month != 5],
            pd.date_range("2020-01-01", periods=12, freq="MS").delete(4),
        ),
        (
            [f"01.{month:02}.{year}" for year in (2019, 2020) for month in (1, 4, 7, 10)][:-2]
            + ["01.10.2020"],
            pd.date_range("2019-01-01", periods=8, freq="QS").delete(6),
        ),
    ],
)
def test_days_or_months(write, dates, expected):
    rows = "".join(f"{date},{k}\n" for k, date in enumerate(dates))
    reading = read_series(write(f"date,value\n{rows}"))
    assert reading.frame["ds"].tolist() == [*expected]


def test_the_regular_reading_of_ambiguous_dates_is_taken(write):
    rows = "".join(f"01/{month:02}/20{year},1\n" for year in (20, 21) for month in range(1, 13))
    reading = read_series(write(f"date,value\n{rows}"))
    assert reading.frame["ds"].tolist() == [*pd.date_range("2020-01-01", periods=24, freq="MS")]
    assert "dates such as '01/01/2020' have the day before month" in reading.guesses


@pytest.mark.parametrize(
    "text",
    ["date;y\n2020-01-01;1,5\n2020-01-02;2,5\n", "date\ty\n2020-01-01\t1.5\n2020-01-02\t2.5\n"],
)
def test_other_separators_and_decimals(write, text):
    assert read_series(write(text)).frame["y"].tolist() == [1.5, 2.5]


def test_decimal_commas_beside_points_of_other_columns(write):
    rows = "2020-01-01 00:00:00.000;1,5;0.25\n2020-01-02 00:00:00.000;2,5;0.75\n"
    frame = read_series(write("ds;y;share\n" + rows), Columns(covariates=("share",))).frame
    assert frame["y"].tolist() == [1.5, 2.5]
    assert frame["share"].tolist() == [0.25, 0.75]


def test_byte_order_mark_and_blank_lines(write):
    path = write("date,y\n2020-01-01,1\n\n2020-01-02,2\n", encoding="utf-8-sig")
    assert read_series(path).frame.index.tolist() == [2, 4]


YEARS_FIRST = "date,y\n" + "".join(
    f"{date:%y-%m-%d},1\n" for date in pd.date_range("2024-01-01", periods=40)
)


MONTH_STARTS = "date,y\n" + "".join(f"19{month:02}01,1\n" for month in range(1, 13))
DAYS = pd.date_range("2020-01-01", periods=40)
SLASHES = "date,y\n" + "".join(f"{day:%d/%m/%Y},1\n" for day in DAYS)
ISO = "date,y\n" + "".join(f"{day.date()},1\n" for day in DAYS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("date,y\n", "a header and no rows"),
        ("y\n1\n", "must have two columns at least"),
        ("2020-01-01,1\n2020-01-02,2\n", r"must begin with a header .* Got \['2020-01-01', '1'\]"),
        ("date,y\n2020-01-01,1\n2020-13-01,2\n", "line 3: date must be a date. Got '2020-13-01'"),
        ("date,y\n31/01/2020,1\n31/02/2020,2\n", "line 3: date must be a date. Got '31/02/2020'"),
        ("date,y\n2020-01-01,1\n,2\n", "line 3 has no date"),
        ("date,y\n2020-01-01,1\n2020-01-02,1.2.3\n", "line 3: y must be a number. Got '1.2.3'"),
        ("date,y\n00:00,1\n01:00,2\n", "line 2: date must be a date. Got '00:00'"),
        ("date;y\n2020-01-01;953\n2020-01-02;1,001\n", "line 3: .* thousands. Got '1,001'"),
        ("date,y\n2020-01-01,1.244\n2020-01-02,891\n", "line 2: .* point for thousands. .*'1.244'"),
        ("date;y\n2020-01-01;891\n2020-01-02;-1.280\n", "line 3: .* point for thousands"),
        ('date,y\n2020-01-01,953\n2020-01-02,"1,001"\n', "line 3: .* comma for thousands"),
        ("date;y\n2020-01-01;953.5\n2020-01-02;1,001\n", "line 3: .* number. Got '1,001'"),
        ("date;y\n2020-01-01;953.5\n2020-01-02;1.001,5\n", "line 2: .* number. Got '953.5'"),
        ("date,y,t\n2020-01-01,1,'a\n2020-01-02,x,b\n", "line 3: y must be a number. Got 'x'"),
        ('date,y,t\n2020-01-01,1,"a\nb\n"\n2020-01-02,x,b\n', "line 5: y must be a number"),
        ('date,y,"t\nu"\n2020-01-01,1,a\n2020-01-02,x,b\n', "line 4: y must be a number"),
        ("id,date,y\na,2020-01-01,1\na,2020-01-02,1\n,2020-01-03,1\n", "line 4 has no id"),
        ("date,y\n2020-01-01,10,013\n2020-01-02,10,587\n", "line 2 has 3 cells, .* names 2"),
        ("date,y\n2020-01-01,5,\n2020-01-02,6,7\n", "line 3 has 3 cells, .* names 2"),
        (YEARS_FIRST, "line 2: .* years of four digits"),
        (MONTH_STARTS, "line 2: date must have years of four digits before days. Got '190101'"),
        (SLASHES + "2020-02-13,1\n", "line 42: date must .* one way .* '2020-02-13' beside '01/01"),
        (ISO + "13/02/2020,1\n02/03/2020,1\n", "line 42: date must .* Got '13/02/2020' beside"),
        ("date,y\n01~02~2020,1\n", "line 2: date must be a date"),
        ("date,y\n1/2/2020,1\n(1/2/2020),1\n", "line 3: date must be .* Got"),
        ("date,y\n2020-01-01,1\n12h 01/02/2020,1\n", "line 3: date must .* which number .* month"),
        ("date,y\n2020-01-01,1\n2020-01-02,2,3\n", "line 3"),
        ("a,b\nx,1\ny,2\n", "no column holds dates"),
        ("date,b,c\n2020-01-01,x,y\n", "no column holds numbers to forecast"),
    ],
)
def test_files_that_cannot_be_read(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_series(write(text))


def test_what_is_not_there(write, tmp_path):
    path = write("date,y\n2020-01-01,1\n")
    with pytest.raises(ValueError, match=r"no column 'sales'. The columns are \['date', 'y'\]"):
        read_series(path, Columns(y="sales"))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.csv"):
        read_series(tmp_path / "none.csv")
    for not_text in (b"date,y\n2020-01-01,\xff\n", b"\xff\xfed\0a"):
        path.write_bytes(not_text)
        with pytest.raises(ValueError, match="must be text in UTF-8 or UTF-16"):
            read_series(path)


def test_unicode_text_of_excel(write):
    reading = read_series(write("date\tBière\n2020-01-01\t1,5\n2020-02-01\t2\n", "utf-16"))
    assert reading.names.y == "Bière"
    assert reading.frame["y"].tolist() == [1.5, 2.0]


@pytest.mark.parametrize("series", ["", "store,"])
def test_covariates_of_the_future(write, series):
    cell = "7," if series else ""
    columns = Columns(covariates=("price",), y="y")
    known = write(f"{series}date,y,price\n{cell}01/13/2020,1,5\n{cell}01/14/2020,1,6\n")
    reading = read_series(known, columns)
    ids = reading.frame["unique_id"].iloc[:1]
    rows = pd.DataFrame({"unique_id": ids, "ds": pd.to_datetime(["2020-01-15"])})
    path = write(f"{series}date,price\n{cell}01/15/2020,9\n{cell}01/16/2020,8\n")
    future = read_future(path, reading, rows)
    assert future["price"].tolist() == [9]
    with pytest.raises(ValueError, match=r"one row for series '.' at 2020-01-17"):
        read_future(path, reading, rows.assign(ds=pd.to_datetime(["2020-01-17"])))
    with pytest.raises(ValueError, match="no column 'price'"):
        read_future(write(f"{series}date,cost\n{cell}01/15/2020,1\n"), reading, rows)


def test_an_index_that_pandas_wrote_is_not_the_target(write):
    frame = pd.DataFrame({"when": ["2020-01-01", "2020-02-01", "2020-03-01"], "tons": [5, 7, 6]})
    assert read_series(write(frame.to_csv())).names == Columns(None, "when", "tons")
    twice = pd.concat([frame.assign(unique_id="a"), frame.assign(unique_id="b")])
    assert read_series(write(twice.to_csv())).names == Columns("unique_id", "when", "tons")
    assert read_series(write(frame[::-1].to_csv())).names == Columns(None, "when", "tons")
    named = frame.reset_index().to_csv(index=False)
    assert read_series(write(named)).names == Columns(None, "when", "tons")


def test_parts_of_dates_are_not_the_target(write):
    text = "date,year,month,load\n2020-01-01,2020,1,5\n2020-02-01,2020,2,6\n"
    assert read_series(write(text)).names == Columns(None, "date", "load")
    with pytest.raises(ValueError, match=r"no column holds numbers to forecast.*'year', 'month'"):
        read_series(write(text.replace("load", "hour")))


SHOPS = [(day, shop) for day in range(1, 4) for shop in (1, 2)]


@pytest.mark.parametrize(
    ("header", "rows", "expected"),
    [
        ("row_id,date,sold", [f"{k},2020-01-0{k},{7 - k}" for k in range(1, 4)], (None, "sold")),
        ("row_id,date,sold", [f"{k},2020-01-0{k},{k}.5" for k in range(1, 4)], (None, "sold")),
        ("t,date,sold", [f"{k},2020-01-0{k},{9 - k}" for k in range(1, 4)], (None, "sold")),
        ("date,holiday,sold", [f"2020-01-0{k},0,{9 - k}" for k in range(1, 4)], (None, "sold")),
        ("date,sale,sold", [f"2020-01-0{k},{k % 2},{3 * k}" for k in range(1, 4)], (None, "sold")),
        ("date,shop_nr,sold", [f"2020-01-0{k},7,{9 - k}" for k in range(1, 4)], (None, "sold")),
        ("id,date,sales", [f"{k},2020-01-0{k},{9 - k}" for k in range(1, 4)], (None, "sales")),
        ("date,shop_nr,sold", [f"2020-01-0{d},{n},{d}" for d, n in SHOPS], ("shop_nr", "sold")),
        (
            "id,date,kind,shop nbr,sales",  # of two columns, the one that tells all rows apart
            [f"{k},2020-01-0{d},x,{n},{9 - k}" for k, (d, n) in enumerate(SHOPS)],
            ("shop nbr", "sales"),
        ),
        # What looks like no values is taken where nothing else is left.
        ("date,shop_nr", [f"2020-01-0{k},{k}" for k in range(1, 4)], (None, "shop_nr")),
    ],
)
def test_numbers_of_rows_and_shops_are_not_the_target(write, header, rows, expected):
    names = read_series(write("\n".join([header, *rows]) + "\n")).names
    assert (names.unique_id, names.y) == expected


def test_series_that_two_columns_name(write):
    rows = [f"2020-01-0{d},{n},{f},{d}" for d, n in SHOPS for f in ("bread", "wine")]
    path = write("date,store_nbr,family,sales\n" + "\n".join(rows) + "\n")
    message = r"series '1' has 2020-01-01 00:00:00 more than once in date \(line 3\); give --id-col"
    with pytest.raises(ValueError, match=message):
        read_series(path)


def test_the_only_other_column_is_the_target_whatever_its_name(write):
    assert read_series(write("date,\n2020-01-01,5\n2020-02-01,6\n")).names.y == "Unnamed: 1"


def test_a_column_of_numbers_is_the_target_with_a_bad_one_too(write):
    with pytest.raises(ValueError, match=r"line 3: tons must be a number\. Got '7o'"):
        read_series(write("when,tons,price\n2020-01-01,5,1\n2020-02-01,7o,1\n2020-03-01,6,1\n"))


def test_text_names_series_only_where_times_repeat(write):
    reading = read_series(write("ds,y,notes\n2020-01-01,5,\n2020-01-02,6,x\n2020-01-03,6,x\n"))
    assert reading.names.unique_id is None
    assert reading.frame["unique_id"].eq("y").all()


def test_days_before_months_with_a_month_missing(write):
    days = [f"01/{month:02}/{year}" for year in range(2000, 2003) for month in range(1, 13)]
    reading = read_series(write("ds,y\n" + "".join(f"{d},1\n" for d in days if d != "01/05/2001")))
    assert reading.frame["ds"].iloc[1] == pd.Timestamp("2000-02-01")


def test_dots_follow_the_day(write):
    text = "Datum;Umsatz\n01.01.2020;50,06\n01.02.2020;51,5\n01.03.2020;49,25\n"
    reading = read_series(write(text))
    assert reading.frame["ds"].iloc[2] == pd.Timestamp("2020-03-01")
    assert reading.frame["y"].tolist() == [50.06, 51.5, 49.25]


def test_hours_of_few_days_have_their_order_without_a_warning(write, recwarn):
    hours = pd.date_range("2023-02-01", periods=216, freq="h")
    reading = read_series(write("ds,y\n" + "".join(f"{t:%d/%m/%Y %H:%M},1\n" for t in hours)))
    assert reading.frame["ds"].tolist() == [*hours]
    assert not recwarn.list


def test_one_order_of_days_and_months(write):
    with pytest.raises(ValueError, match=r"line 3: ds must have the day before .* as line 2 has"):
        read_series(write("ds,y\n13/01/2020,1\n01/14/2020,2\n15/01/2020,3\n"))


@pytest.mark.parametrize("order", ["%d/%m/%Y", "%m/%d/%Y"])
def test_the_future_has_its_days_where_the_past_has_them(write, order):
    days = pd.date_range("2020-01-11", "2020-03-07")
    known, later = days[:-7], days[-7:]  # of which each may be read either way
    rows = "".join(f"{day:{order}},1,1\n" for day in known)
    reading = read_series(write("ds,y,price\n" + rows), Columns(covariates=("price",)))
    future = pd.DataFrame({"unique_id": "y", "ds": later})
    path = write("ds,price\n" + "".join(f"{day:{order}},{day.day}\n" for day in later))
    assert read_future(path, reading, future)["price"].tolist() == [*later.day]
    other = "%m/%d/%Y" if order == "%d/%m/%Y" else "%d/%m/%Y"
    path = write(f"ds,price\n{pd.Timestamp('2020-03-28'):{other}},1\n")
    message = r"line 2: ds must have the (day|month) before the \w+, as the file of the series has"
    with pytest.raises(ValueError, match=message):
        read_future(path, reading, future)


@pytest.mark.parametrize(("months", "freq"), [(1, "MS"), (3, "QS-FEB"), (12, "YS-FEB")])
def test_dates_that_stand_for_months(write, months, freq):
    days = [pd.Timestamp("2020-02-15") + pd.DateOffset(months=months * k) for k in range(10)]
    rows = "".join(f"{day.date()},1,2\n" for day in days)
    reading = read_series(write("ds,y,price\n" + rows), Columns(covariates=("price",)))
    assert reading.frame["ds"].tolist() == pd.date_range("2020-02", periods=10, freq=freq).tolist()
    told = "dates such as '2020-02-15' stand for months, and are taken as the first"
    assert told in reading.guesses
    one = pd.DataFrame({"unique_id": ["y"], "ds": [pd.Timestamp("2031-05-01")]})
    assert len(read_future(write("ds,price\n2031-05-15,3\n"), reading, one)) == 1


@pytest.mark.parametrize("dates", [["2019-12-31", "2020-12-31", "2021-12-31"], ["2020-01-15"]])
def test_dates_that_do_not_stand_for_months(write, dates):
    reading = read_series(write("ds,y\n" + "".join(f"{date},1\n" for date in dates)))
    assert reading.frame["ds"].tolist() == [*pd.to_datetime(dates)]


def test_covariates_have_names_of_their_own(write):
    path = write("date,y,sales,y2\n2020-01-01,1,2,3\n2020-01-02,1,2,3\n")
    for columns, message in (
        (Columns(y="sales", covariates=("y",)), "beside unique_id, ds, y, each once. Got 'y'"),
        (Columns(covariates=("y2", "y2")), "each once. Got 'y2'"),
        (Columns(y="sales", covariates=("sales",)), "column 'sales' is given for two things"),
        (Columns(ds="date", y="date"), "column 'date' is given for two things"),
    ):
        with pytest.raises(ValueError, match=message):
            read_series(path, columns)


def test_truth_is_a_number_and_nothing_is_missing(write):
    path = write("ds,y,holiday\n2020-01-01,N/A,True\n2020-01-02,,False\n2020-01-03, 2 ,true\n")
    frame = read_series(path, Columns(y="y", covariates=("holiday",))).frame
    assert frame["holiday"].tolist() == [1, 0, 1]
    assert frame["y"].isna().tolist() == [True, True, False]


def test_three_decimals_beside_whole_numbers(write):
    text = "station;ds;value\n17;2020-01-01;1,459\n17;2020-01-02;1,461\n"
    assert read_series(write(text)).frame["y"].tolist() == [1.459, 1.461]


def test_months_with_a_point_are_dates_where_a_number_would_have_no_zero(write):
    text = "Monat;Umsatz\n01.2015;5,5\n02.2015;6,5\n10.2015;7,5\n"
    reading = read_series(write(text))
    assert reading.names == Columns(None, "Monat", "Umsatz")
    assert reading.frame["ds"].tolist() == [*pd.to_datetime(["2015-01", "2015-02", "2015-10"])]
    with pytest.raises(ValueError, match=r"no column holds dates.*'Kurs', 'Umsatz'"):
        read_series(write("Kurs;Umsatz\n1.2015;5\n1.2014;6\n10.2013;7\n"))


def test_names_may_hold_commas(write):
    reading = read_series(write('"sales, net, in EUR";date\n5;2020-01-01\n6;2020-01-02\n'))
    assert reading.names == Columns(None, "date", "sales, net, in EUR")


def test_times_of_day_name_no_series(write):
    rows = "".join(f"2020-01-0{d},{h:02}:00,{h}\n" for d in (1, 2) for h in range(3))
    with pytest.raises(ValueError, match=r"series 'Load' has 2020-01-01 .* more than once in Date"):
        read_series(write("Date,Time,Load\n" + rows))


def test_commas_of_text_are_left_alone(write):
    text = "name;ds;y\nSmith, Ann;2020-01-01;\nSmith, Ann;2020-01-02;2,5\nSmith, Bo;2020-01-01;3\n"
    frame = read_series(write(text)).frame
    assert frame["unique_id"].unique().tolist() == ["Smith, Ann", "Smith, Bo"]
    assert frame["y"].tolist()[1:] == [2.5, 3]


def test_times_across_a_change_of_the_clock(write):
    text = "ds,y\n2024-03-31T01:00:00+01:00,1\n2024-03-31T03:00:00+02:00,2\n"
    reading = read_series(write(text))
    hours = pd.to_datetime(["2024-03-31 00:00", "2024-03-31 01:00"], utc=True)
    assert reading.frame["ds"].tolist() == [*hours]
    assert "times are of several offsets and are taken in UTC" in reading.guesses


@pytest.mark.parametrize("form", ["%d-%m-%y", "%d/%m/%y", "%d.%m.%y"])
@pytest.mark.parametrize(
    "dates",
    [
        pd.date_range("2024-03-01", periods=28),
        pd.date_range("2020-01-01", periods=40),
        pd.date_range("2001-12-01", periods=31),
        pd.bdate_range("2020-01-01", periods=60),
        pd.date_range("2020-01-01", periods=90)[[k for k in range(90) if k % 7]],
        pd.date_range("2020-01-01", periods=14, freq="MS"),
        pd.date_range("2010-12-31", periods=14, freq="YE"),
    ],
    ids=["month", "40 days", "December 2001", "business", "gaps", "months", "years"],
)
def test_years_of_two_digits_come_last(write, dates, form):
    rows = "".join(f"{date.strftime(form)},1\n" for date in dates)
    assert read_series(write("ds,y\n" + rows)).frame["ds"].tolist() == [*dates]


def test_midnights_across_a_change_of_the_clock(write):
    days = pd.date_range("2024-03-25", periods=12, tz="Europe/Berlin")
    reading = read_series(write("ds,y\n" + "".join(f"{day},1\n" for day in days)))
    assert reading.frame["ds"].tolist() == [*days.tz_localize(None)]
    assert "times are of several offsets and are taken as clocks showed them" in reading.guesses
    months = pd.date_range("2024-01-01", periods=30, freq="MS", tz="Europe/Berlin")
    reading = read_series(write("ds,y\n" + "".join(f"{month},1\n" for month in months)))
    assert reading.frame["ds"].tolist() == [*months.tz_localize(None)]
    hours = pd.date_range("2024-10-26 12:00", periods=30, freq="h", tz="Europe/Berlin")
    reading = read_series(write("ds,y\n" + "".join(f"{hour},1\n" for hour in hours)))
    assert reading.frame["ds"].tolist() == [*hours.tz_convert("UTC")]


@pytest.mark.parametrize(("freq", "h"), [("D", 7), ("h", 24)])
def test_the_future_has_its_offsets_read_as_those_of_the_past(write, freq, h):
    times = pd.date_range("2023-03-20", "2023-04-20", freq=freq, tz="Europe/Berlin")
    rows = [f"{time},1,{k}\n" for k, time in enumerate(times)]
    columns = Columns(y="y", covariates=("promo",))
    reading = read_series(write("ds,y,promo\n" + "".join(rows[:-h])), columns)
    ds = times[-h:].tz_localize(None) if freq == "D" else times[-h:].tz_convert("UTC")
    future = pd.DataFrame({"unique_id": "y", "ds": ds})
    path = write("ds,promo\n" + "".join(f"{t},{k}\n" for k, t in enumerate(times[-h:])))
    assert read_future(path, reading, future)["promo"].tolist() == [*range(h)]


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d %H:%M GMT+1",
        "%Y-%m-%d %H:%M UTC+01:00",
        "%Y-%m-%d %H:%M:%S utc+0100",
        "%d/%m/%Y %H:%M GMT+1",
        "%a %b %d %Y %H:%M:%S GMT+0100",
    ],
)
def test_what_is_said_to_be_ahead_of_utc_is(write, form):
    hours = pd.date_range("2023-02-01", periods=48, freq="h", tz="+01:00")
    reading = read_series(write("ds,y\n" + "".join(f"{t.strftime(form)},1\n" for t in hours)))
    assert reading.frame["ds"].tolist() == [*hours]


def test_a_bad_time_among_offsets_is_named(write):
    text = "ds,y\n2024-03-31T01:00:00+01:00,1\n2024-03-31T03:00:00+02:00,2\nnever,3\n"
    with pytest.raises(ValueError, match=r"line 4: ds must be a date\. Got 'never'"):
        read_series(write(text))


@pytest.mark.parametrize("month", ["2023-M{:02}", "2023M{}", "2023 m{}"])
def test_months_of_statistical_offices(write, month):
    rows = "".join(f"{month.format(k)},{k}\n" for k in range(1, 13))
    dates = read_series(write("ds,y\n" + rows)).frame["ds"]
    assert dates.tolist() == [*pd.date_range("2023-01-01", periods=12, freq="MS")]


@pytest.mark.parametrize(
    "quarter",
    [
        "{q}Q{y}", "{y}Q{q}", "{y}-Q{q}", "Q{q}/{y}", "q{q} {y}", "Q{q} 19{y}", "{q}Q19{y}",
        "19{y}-T{q}", "19{y}T{q}", "T{q}-19{y}", "{q}T{y}",
    ],
)  # fmt: skip
def test_quarters(write, quarter):
    rows = "".join(f"{quarter.format(q=q, y=y)},{q}\n" for y in (89, 90) for q in range(1, 5))
    reading = read_series(write("ds,y\n" + rows))
    assert reading.frame["ds"].tolist() == [*pd.date_range("1989-01-01", periods=8, freq="QS")]
    told = "years of two digits are 1969 to 2068"
    assert (told in reading.guesses) == ("19" not in quarter)


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        (["4Q68", "1Q69"], ["2068-10-01", "1969-01-01"]),
        (["4Q99", "1Q00", "2Q2000"], ["1999-10-01", "2000-01-01", "2000-04-01"]),
        (["31.12.68", "31.01.69"], ["2068-12-31", "1969-01-31"]),
        (["28-Feb-72", "29-Feb-72"], ["1972-02-28", "1972-02-29"]),
        (["28 Feb 2072", "29 Feb 2072"], ["2072-02-28", "2072-02-29"]),
    ],
)
def test_years_of_two_digits_have_one_century(write, dates, expected):
    """Not that which is nearest the day on which the file is read."""
    reading = read_series(write("ds,y\n" + "".join(f"{date},1\n" for date in dates)))
    assert reading.frame["ds"].tolist() == [*pd.to_datetime(expected)]


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("%b-%y", "2015-01"),
        ("%b %y", "1998-05"),
        ("%B '%y", "1960-01"),
        ("%b/%y", "2001-01"),
        ("%b%y", "2001-01"),
        ("%y-%b", "2015-01"),
        ("%y-%b", "1998-05"),
        ("%m/%y", "2015-01"),
        ("%m.%y", "2001-01"),
        ("%y-%m", "2015-01"),
    ],
)
def test_months_with_years_of_two_digits(write, form, start):
    months = pd.date_range(start, periods=30, freq="MS")
    rows = "".join(f"{month.strftime(form)},1,{k}\n" for k, month in enumerate(months[:-2]))
    columns = Columns(y="y", covariates=("price",))
    reading = read_series(write("ds,y,price\n" + rows), columns)
    expected = months.where(months.year >= 1969, months + pd.DateOffset(years=100))
    assert reading.frame["ds"].tolist() == [*expected[:-2]]
    order = "year and month" if form.startswith("%y") else "month and year"
    assert f"dates such as {months[0].strftime(form)!r} are {order}" in reading.guesses
    # The few dates of the future might be days as well.
    future = pd.DataFrame({"unique_id": "y", "ds": expected[-2:]})
    path = write("ds,price\n" + "".join(f"{m.strftime(form)},{m.month}\n" for m in months[-2:]))
    assert read_future(path, reading, future)["price"].tolist() == [*months[-2:].month]


@pytest.mark.parametrize(("freq", "periods"), [("YS-DEC", 19), ("QS", 20)])
def test_years_and_quarters_with_years_of_two_digits(write, freq, periods):
    dates = pd.date_range("2001-12-01", periods=periods, freq=freq)
    rows = "".join(f"{date:%b-%y},1\n" for date in dates)
    assert read_series(write("ds,y\n" + rows)).frame["ds"].tolist() == [*dates]


@pytest.mark.parametrize(
    ("form", "freq"),
    [
        ("%-d-%b", "D"),
        ("%d-%b", "D"),
        ("%b %-d", "B"),
        ("%b-%d", "D"),
        ("%b %d", "7D"),
        ("%d.%m.", "D"),
        ("%d/%m", "7D"),
        ("%m-%d", "D"),
        ("%a %d %b", "D"),
        # Of one month, or one year.
        ("%d/01", "D"),
        ("%m/15", "MS"),
    ],
)
def test_dates_without_a_year(write, form, freq):
    dates = pd.date_range("2020-01-06", periods=11 if form[-2:].isdigit() else 40, freq=freq)
    rows = "".join(f"{date.strftime(form)},1\n" for date in dates)
    with pytest.raises(
        ValueError, match=r"line 2: ds must be a date\. .* which has no year, or one"
    ):
        read_series(write("ds,y\n" + rows))


def test_a_bad_month_is_named_as_it_is_written(write):
    with pytest.raises(ValueError, match=r"line 3: ds must be a date\. Got '2023-M13'"):
        read_series(write("ds,y\n2023-M12,1\n2023-M13,2\n"))


@pytest.mark.parametrize("between", ["/", " - ", "-", "\u2013", " to ", ".."])
def test_spans_of_days(write, between):
    mondays = pd.date_range("2020-01-06", periods=12, freq="W-MON")
    spans = [f"{day.date()}{between}{(day + pd.Timedelta('6D')).date()}" for day in mondays]
    reading = read_series(write("week,y\n" + "".join(f"{span},1\n" for span in spans)))
    assert reading.frame["ds"].tolist() == [*mondays]
    assert f"dates such as {spans[0]!r} are taken as their first days" in reading.guesses
    with pytest.raises(ValueError, match=rf"line 3: week must be a date\. Got '{spans[1]}'"):
        read_series(write(f"week,y\n2020-01-06,1\n{spans[1]},2\n"))


@pytest.mark.parametrize("zones", [("Z", ""), ("+02:00", ""), ("", "Z"), ("", "+02")])
def test_a_zone_in_some_lines_alone(write, zones):
    first, last = zones
    text = f"ds,y\n2020-01-01T00:00{first},1\n2020-01-02T00:00{first},2\n2020-01-03T00:00{last},3\n"
    bad = re.escape(f"'2020-01-03T00:00{last}' beside")
    with pytest.raises(ValueError, match=f"line 4: ds must .* same zone .* {bad}"):
        read_series(write(text))


@pytest.mark.parametrize("sign", "-/")
@pytest.mark.parametrize("start", [1990, 2000])
def test_years_that_end_in_the_next_are_no_months(write, sign, start):
    rows = "".join(f"{y}{sign}{(y + 1) % 100:02},1\n" for y in range(start, start + 12))
    message = rf"line 2: ds must have one year, as {start}, or be a date\. Got '{start}{sign}"
    with pytest.raises(ValueError, match=message):
        read_series(write("ds,y\n" + rows))


def test_rows_after_the_last_value_are_those_to_forecast(write):
    text = "id,ds,y,x\na,2020-01-01,1,1\na,2020-01-02,,1\nb,2020-01-01,,1\nb,2020-01-02,2,1\n"
    assert read_series(write(text)).frame["y"].isna().tolist() == [False, True, True, False]
    path = write(text + "a,2020-01-03,,7\nb,2020-01-03,#N/A,8\n")
    reading = read_series(path, Columns(y="y", covariates=("x",)))
    assert reading.frame.index.tolist() == [2, 3, 4, 5]
    told = "2 rows at the end have no y (line 6) and are left out, as what is to be forecast"
    assert told in reading.guesses
    future = pd.DataFrame({"unique_id": ["a", "b"], "ds": 2 * [pd.Timestamp("2020-01-03")]})
    assert read_future(path, reading, future)["x"].tolist() == [7, 8]
    nothing = read_series(write("ds,y\n2020-01-01,\n2020-01-02,\n"), Columns(y="y"))
    assert len(nothing.frame) == 2  # the forecaster says what is wrong


@pytest.mark.parametrize(
    ("written", "numbers", "group"),
    [
        (["1.000,00", "953,5", "2"], [1000, 953.5, 2], "."),
        (["100,000.00", "953.5", "1,001"], [100000, 953.5, 1001], ","),
        (["1,000,000", "950,000", "-953"], [1000000, 950000, -953], ","),
        (["1.000.000", "950.000", "-"], [1000000, 950000, math.nan], "."),
    ],
)
@pytest.mark.parametrize("separator", [";", ","])
def test_thousands_that_show(write, written, numbers, group, separator):
    rows = [f'2020-01-0{k};"{n}";"{n}"\n' for k, n in zip((3, 2, 1), written, strict=True)]
    text = "ds;y;price\n" + "".join(rows)
    columns = Columns(y="y", covariates=("price",))
    reading = read_series(write(text.replace(";", separator)), columns)
    assert reading.frame["y"].tolist() == pytest.approx(numbers, nan_ok=True)
    # One that does not show it, but for those of the past.
    future = pd.DataFrame({"unique_id": ["y"], "ds": [pd.Timestamp("2020-01-04")]})
    path = write(f'ds;price\n2020-01-04;"1{group}500"\n'.replace(";", separator))
    assert read_future(path, reading, future)["price"].tolist() == [1500]


def test_numbers_of_articles_have_no_thousands(write):
    text = "article;ds;amount\n10.001.002;2020-01-01;5\n10.001.003;2020-01-01;6\n"
    names = read_series(write(text + "10.001.002;2020-01-02;7\n")).names
    assert names == Columns("article", "ds", "amount")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        ("$100", ", which holds '\\$'"),
        ("10 %", ", which holds '%'"),
        ("(100)", r", which holds '\(\)'"),
        ("1,001", "; give decimal"),
        ("1 000", ", which holds ' '"),
        ("1.2.3", "$"),
    ],
)
def test_what_is_in_the_way_of_a_number_is_told(write, number, told):
    message = rf"line 2: y must be a number\. Got '{re.escape(number)}'{told}"
    with pytest.raises(ValueError, match=message):
        read_series(write(f'ds,y\n2020-01-01,"{number}"\n2020-01-02,"{number}"\n'))


def test_separators_at_the_end_of_lines(write):
    frame = read_series(write("ds,y\n2020-01-01,5,\n2020-01-02,6,\n")).frame
    assert frame["y"].tolist() == [5, 6]


def test_ids_are_as_they_are_written(write):
    ids = ["007", "7", "NA", "1.10", "007"]
    rows = [f"{name},2020-01-0{k + 1},6" for k, name in enumerate(ids)]
    text = "\n".join(["sku,ds,y", *rows[:3], "", *rows[3:]])
    assert read_series(write(text)).frame["unique_id"].tolist() == ids


def test_ids_with_a_comma_are_as_they_are_written(write):
    text = "sku;ds;y\n1,5;2020-01-01;2,5\n1,25;2020-01-01;3,5\n1,5;2020-01-02;4,5\n"
    frame = read_series(write(text)).frame
    assert frame["unique_id"].tolist() == ["1,5", "1,25", "1,5"]
    assert frame["y"].tolist() == [2.5, 3.5, 4.5]


@pytest.mark.parametrize("numbers", [["1.244", "1.280"], ["1.244", "2"], ["0.244", "891"]])
def test_three_decimals_are_not_thousands(write, numbers):
    more = ["1.5"] if numbers[1] == "2" else []
    rows = "".join(f"2020-01-0{k},{n}\n" for k, n in enumerate(numbers + more, 1))
    assert read_series(write("ds,y\n" + rows)).frame["y"].tolist() == [*map(float, numbers + more)]


def decimals_of(text: str) -> str:
    return f"numbers such as '{text}' in column 'y' have decimals, not thousands"


def test_how_three_digits_after_a_sign_are_read_is_told(write):
    for text, told in (
        ("ds,y\n2020-01-01,10.000\n2020-01-02,10.500\n", "10.000"),
        ("ds;y\n2020-01-01;-1,250\n2020-01-02;1,500\n", "-1,250"),
    ):
        reading = read_series(write(text))
        assert decimals_of(told) in reading.guesses
        assert reading.frame["y"].abs().max() < 11
    for text in ("10.00", "0.500", "1000"):
        reading = read_series(write(f"ds,y\n2020-01-01,{text}\n2020-01-02,{text}\n"))
        assert not any("thousands" in guess for guess in reading.guesses)


@pytest.mark.parametrize(
    ("decimal", "written", "numbers"),
    [
        (",", ["10.000", "10.500"], [10000, 10500]),
        (".", ["10.000", "10.500"], [10, 10.5]),
        (",", ["1.234.567,5", "-12", "3,25", "1e3"], [1234567.5, -12, 3.25, 1000]),
        (".", ["1,234,567.5", "-12", "3.25", ".5"], [1234567.5, -12, 3.25, 0.5]),
        (".", ["1.001", "953"], [1.001, 953]),
        (",", ["1.001", "953"], [1001, 953]),
        (".", ["True", "", "False"], [1, math.nan, 0]),
    ],
)
def test_the_sign_before_decimals_can_be_given(write, decimal, written, numbers):
    """Which changes neither dates nor names."""
    rows = "".join(f'1.250;2020.{k:02};{n};"{n}"\n' for k, n in enumerate(written, 1))
    columns = Columns(y="y", covariates=("price",))
    reading = read_series(write("id;ds;y;price\n" + rows), columns, decimal)
    assert reading.frame["unique_id"].eq("1.250").all()
    assert reading.frame["ds"].tolist() == [
        *pd.date_range("2020-01-01", periods=len(written), freq="MS")
    ]
    assert reading.frame["y"].tolist() == pytest.approx(numbers, nan_ok=True)
    assert not any("thousands" in guess for guess in reading.guesses)
    rows = reading.frame[["unique_id", "ds"]][:1]
    path = write(f'id,ds,price\n1.250,2020.01,"{written[0]}"\n')
    assert read_future(path, reading, rows)["price"].tolist() == numbers[:1]


@pytest.mark.parametrize(
    ("decimal", "number"),
    [(",", "10.5"), (",", "1.0000"), (".", "10,5"), (",", "1,5,5"), (".", "1.234,5")],
)
def test_numbers_that_the_given_sign_forbids(write, decimal, number):
    for rows in (f"2020-01-01;{number}\n", f"2020-01-01;5\n2020-01-02;5\n2020-01-03;{number}\n"):
        with pytest.raises(ValueError, match=rf"line .: y must be a number\. Got '{number}'"):
            read_series(write("ds;y\n" + rows), decimal=decimal)
    with pytest.raises(ValueError, match=r"decimal must be '\.' or ','\. Got 'comma'"):
        read_series(write("ds;y\n2020-01-01;5\n"), decimal="comma")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (['2020-01-01,"5', "2020-01-02,6"], 2),
        (['2020-01-01,"5"', '"2020-01-02",6', '2020-01-03,"7'], 4),
        (['2020-01-01,"5\n"', '2020-01-02,"7', "2020-01-03,6"], 4),
        (
            ["2020-01-01,5", '2020-01-02,"6', *["2020-01-03,6"] * 20_000],
            3,
        ),  # csv reads no such cell
    ],
)
def test_a_quotation_without_an_end_is_named_by_its_line(write, rows, line):
    with pytest.raises(ValueError, match=rf"line {line} of .*series.csv has a quotation that does"):
        read_series(write("ds,y\n" + "\n".join(rows) + "\n"))


@pytest.mark.parametrize(
    ("name", "form"),
    [("week", "%G%V"), ("Week", "%G-%V"), ("iso_week", "%G%V"), ("ds", "%G-W%V"), ("ds", "%GW%V")],
)
def test_weeks(write, name, form):
    mondays = pd.date_range("2018-01-01", periods=60, freq="W-MON")
    rows = "".join(f"{monday.strftime(form)},1,2\n" for monday in mondays)
    columns = Columns(ds=name, y="y", covariates=("price",))
    reading = read_series(write(f"{name},y,price\n{rows}"), columns)
    assert reading.frame["ds"].tolist() == [*mondays]
    first = mondays[0].strftime(form)
    assert (
        f"dates such as '{first}' are weeks of ISO 8601, taken as their Mondays" in reading.guesses
    )
    future = pd.DataFrame({"unique_id": ["y"], "ds": [pd.Timestamp("2020-01-06")]})
    later = pd.Timestamp("2020-01-06").strftime(form)
    assert len(read_future(write(f"{name},price\n{later},3\n"), reading, future)) == 1
    with pytest.raises(ValueError, match=f"line 2: {name} must be a date"):
        read_series(write(f"{name},y,price\n{first[:-2]}54,1,2\n"), columns)


def test_errors_about_the_future_name_its_file(write):
    reading = read_series(write("ds,y,x\n2020-01-01,1,5\n"), Columns(y="y", covariates=("x",)))
    rows = pd.DataFrame({"unique_id": ["y"], "ds": [pd.Timestamp("2020-01-02")]})
    for text, message in (
        ("ds,x\n2020-01-03,1\n", "series.csv must have one row for series 'y' at 2020-01-02"),
        ("ds,x\n" + 2 * "2020-01-02,1\n", "series.csv must have one row for series 'y' at"),
        ("ds,x\n2020-01-02T00:00Z,1\n", r"series.csv\['ds'\] must have no time zone"),
    ):
        with pytest.raises(ValueError, match=message):
            read_future(write(text), reading, rows)
