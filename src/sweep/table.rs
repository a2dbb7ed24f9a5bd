//! Rows of named cells, as CSV and Parquet.

use crate::error::{Error, Result};
use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;
use std::sync::Arc;

/// A value of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// A whole number.
    Whole(i64),
    /// Any number.
    Number(f64),
    /// Yes or no.
    Flag(bool),
    /// Text.
    Text(String),
}

impl Cell {
    /// Of a value of TOML; what is no single value becomes its text.
    pub fn of_toml(value: &toml::Value) -> Self {
        match value {
            toml::Value::Integer(i) => Self::Whole(*i),
            toml::Value::Float(f) => Self::Number(*f),
            toml::Value::Boolean(b) => Self::Flag(*b),
            toml::Value::String(s) => Self::Text(s.clone()),
            other => Self::Text(other.to_string()),
        }
    }

    /// Of a value of JSON; lists, tables and nulls are none.
    pub fn of_json(value: &serde_json::Value) -> Option<Self> {
        match value {
            serde_json::Value::Number(n) => n.as_i64().map(Self::Whole).or_else(|| n.as_f64().map(Self::Number)),
            serde_json::Value::Bool(b) => Some(Self::Flag(*b)),
            serde_json::Value::String(s) => Some(Self::Text(s.clone())),
            _ => None,
        }
    }

    /// As a number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Whole(i) => Some(*i as f64),
            Self::Number(f) => Some(*f),
            _ => None,
        }
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(value) => value.fmt(f),
            // Reads back as the same number.
            Self::Number(value) => write!(f, "{value:?}"),
            Self::Flag(value) => value.fmt(f),
            Self::Text(value) => f.write_str(value),
        }
    }
}

/// Rows over named columns; a cell may be missing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// Names, in the order in which they were first met.
    pub columns: Vec<String>,
    /// As long as there are columns, or shorter.
    pub rows: Vec<Vec<Option<Cell>>>,
}

impl Table {
    /// Adds a row; columns that are new are added.
    pub fn push(&mut self, row: impl IntoIterator<Item = (String, Option<Cell>)>) {
        let mut cells = vec![None; self.columns.len()];
        for (name, cell) in row {
            match self.columns.iter().position(|column| *column == name) {
                Some(at) => cells[at] = cell,
                None => {
                    self.columns.push(name);
                    cells.push(cell);
                }
            }
        }
        self.rows.push(cells);
    }

    /// A cell.
    pub fn get(&self, row: usize, column: &str) -> Option<&Cell> {
        let at = self.columns.iter().position(|name| name == column)?;
        self.rows.get(row)?.get(at)?.as_ref()
    }

    /// As CSV, with a head.
    pub fn csv(&self) -> Result<Vec<u8>> {
        let trouble = |e: &dyn std::fmt::Display| Error::refused(format!("cannot write the table as CSV: {e}"));
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&self.columns).map_err(|e| trouble(&e))?;
        for row in &self.rows {
            let cells = (0..self.columns.len()).map(|i| row.get(i).and_then(Option::as_ref).map_or(String::new(), Cell::to_string));
            writer.write_record(cells).map_err(|e| trouble(&e))?;
        }
        writer.into_inner().map_err(|e| trouble(&e))
    }

    /// As Parquet: a column holds whole numbers, numbers, flags or, where its cells differ, text; every cell may be missing.
    pub fn parquet(&self) -> Result<Vec<u8>> {
        self.write_parquet().map_err(|e| Error::refused(format!("cannot write the table as Parquet: {e}")))
    }

    fn write_parquet(&self) -> parquet::errors::Result<Vec<u8>> {
        let kinds: Vec<Kind> = (0..self.columns.len()).map(|i| Kind::of(self.column(i).flatten())).collect();
        let field = |(name, kind): (&String, &Kind)| {
            let field = Type::primitive_type_builder(name, kind.physical()).with_repetition(Repetition::OPTIONAL);
            field.with_logical_type((*kind == Kind::Text).then_some(LogicalType::String)).build().map(Arc::new)
        };
        let fields = self.columns.iter().zip(&kinds).map(field).collect::<parquet::errors::Result<_>>()?;
        let schema = Arc::new(Type::group_type_builder("results").with_fields(fields).build()?);
        let mut out = Vec::new();
        let mut file = SerializedFileWriter::new(&mut out, schema, Arc::default())?;
        let mut group = file.next_row_group()?;
        let mut index = 0;
        while let Some(mut writer) = group.next_column()? {
            match kinds[index] {
                Kind::Whole => fill::<Int64Type>(&mut writer, self.column(index), |cell| match cell {
                    Cell::Whole(value) => *value,
                    _ => 0,
                })?,
                Kind::Number => fill::<DoubleType>(&mut writer, self.column(index), |cell| cell.number().unwrap_or(f64::NAN))?,
                Kind::Flag => fill::<BoolType>(&mut writer, self.column(index), |cell| *cell == Cell::Flag(true))?,
                Kind::Text => {
                    fill::<ByteArrayType>(&mut writer, self.column(index), |cell| ByteArray::from(cell.to_string().into_bytes()))?
                }
            }
            writer.close()?;
            index += 1;
        }
        group.close()?;
        file.close()?;
        Ok(out)
    }

    fn column(&self, index: usize) -> impl Iterator<Item = Option<&Cell>> {
        self.rows.iter().map(move |row| row.get(index).and_then(Option::as_ref))
    }
}

fn fill<'a, T: DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    cells: impl Iterator<Item = Option<&'a Cell>>,
    value: impl Fn(&Cell) -> T::T,
) -> parquet::errors::Result<()> {
    let cells: Vec<Option<&Cell>> = cells.collect();
    let levels: Vec<i16> = cells.iter().map(|cell| i16::from(cell.is_some())).collect();
    let values: Vec<T::T> = cells.into_iter().flatten().map(value).collect();
    writer.typed::<T>().write_batch(&values, Some(&levels), None).map(|_| ())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    Number,
    Flag,
    Text,
}

impl Kind {
    fn of<'a>(cells: impl Iterator<Item = &'a Cell>) -> Self {
        let one = |cell: &Cell| match cell {
            Cell::Whole(_) => Self::Whole,
            Cell::Number(_) => Self::Number,
            Cell::Flag(_) => Self::Flag,
            Cell::Text(_) => Self::Text,
        };
        let both = |a: Self, b: Self| match (a, b) {
            (a, b) if a == b => a,
            (Self::Whole, Self::Number) | (Self::Number, Self::Whole) => Self::Number,
            _ => Self::Text,
        };
        cells.map(one).reduce(both).unwrap_or(Self::Text)
    }

    fn physical(self) -> Physical {
        match self {
            Self::Whole => Physical::INT64,
            Self::Number => Physical::DOUBLE,
            Self::Flag => Physical::BOOLEAN,
            Self::Text => Physical::BYTE_ARRAY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    fn table() -> Table {
        let mut table = Table::default();
        let text = |t: &str| Some(Cell::Text(t.into()));
        table.push([("name".to_owned(), text("a, \"b\"")), ("n".into(), Some(Cell::Whole(3))), ("x".into(), Some(Cell::Whole(1)))]);
        table.push([("n".to_owned(), None), ("x".into(), Some(Cell::Number(0.1))), ("late".into(), Some(Cell::Flag(true)))]);
        table.push([("late".to_owned(), None), ("mixed".into(), Some(Cell::Flag(false)))]);
        table.push([("mixed".to_owned(), text("ü"))]);
        table
    }

    #[test]
    fn csv_reads_back() {
        let bytes = table().csv().unwrap();
        let mut reader = csv::Reader::from_reader(&bytes[..]);
        assert_eq!(reader.headers().unwrap(), vec!["name", "n", "x", "late", "mixed"]);
        let rows: Vec<Vec<String>> = reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect();
        assert_eq!(rows[0], ["a, \"b\"", "3", "1", "", ""]);
        assert_eq!(rows[1], ["", "", "0.1", "true", ""]);
    }

    #[test]
    fn parquet_reads_back_with_types_and_gaps() {
        let bytes = table().parquet().unwrap();
        assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
        let rows: Vec<Vec<(String, Field)>> = reader.get_row_iter(None).unwrap().map(|r| r.unwrap().into_columns()).collect();
        let cell = |row: usize, name: &str| rows[row].iter().find(|(column, _)| column == name).unwrap().1.clone();
        assert_eq!((rows.len(), cell(0, "name"), cell(1, "name")), (4, Field::Str("a, \"b\"".into()), Field::Null));
        assert_eq!((cell(0, "n"), cell(1, "n")), (Field::Long(3), Field::Null));
        assert_eq!((cell(0, "x"), cell(1, "x"), cell(2, "x")), (Field::Double(1.0), Field::Double(0.1), Field::Null));
        assert_eq!((cell(0, "late"), cell(1, "late")), (Field::Null, Field::Bool(true)));
        assert_eq!((cell(2, "mixed"), cell(3, "mixed")), (Field::Str("false".into()), Field::Str("ü".into())));
    }
}
