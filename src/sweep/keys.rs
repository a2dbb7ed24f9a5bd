//! Dotted keys in tables.

use toml::{Table, Value};

/// The value of a key.
pub(super) fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, rest)) => get(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

/// Sets a key. `None`: it leads through something that is no table.
pub(super) fn put(table: &mut Table, key: &str, value: Value) -> Option<()> {
    match key.split_once('.') {
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            put(inner.as_table_mut()?, rest, value)
        }
        None => {
            table.insert(key.into(), value);
            Some(())
        }
    }
}
