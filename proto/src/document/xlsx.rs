//! Excel: sheet by sheet, row by row. The first row with several cells names the columns.

use super::chunk::Place;
use super::office::Package;
use super::sink::Sink;
use super::{DocumentError, Kind};
use crate::limits::DOCUMENT_CELLS_MAX;
use calamine::{DataRef, ExcelDateTime, Reader, Xlsx, XlsxError};
use std::io::Cursor;

const KIND: Kind = Kind::Xlsx;

pub(super) fn read(bytes: &[u8], sink: &mut Sink) -> Result<(), DocumentError> {
    // The parser below unpacks without a bound of its own.
    Package::open(KIND, bytes)?.check_sizes()?;
    let mut book: Xlsx<_> = Xlsx::new(Cursor::new(bytes)).map_err(broken)?;
    for name in book.sheet_names() {
        sink.place(Place::Sheet(name.clone()))?;
        // Cell by cell: a table in memory would be as large as its farthest cell is far.
        let mut cells = match book.worksheet_cells_reader(&name) {
            Ok(cells) => cells,
            // A chart alone on its sheet has no cells.
            Err(XlsxError::WorksheetNotFound(_)) => continue,
            Err(error) => return Err(broken(error)),
        };
        let mut sheet = Sheet { sink, row: Vec::new(), number: 0, headed: false };
        while let Some(cell) = cells.next_cell().map_err(broken)? {
            let (row, column) = cell.get_position();
            let text = shown(cell.get_value());
            if !text.is_empty() {
                sheet.put(row + 1, column as usize, text)?;
            }
        }
        sheet.end_row()?;
    }
    Ok(())
}

fn broken(error: XlsxError) -> DocumentError {
    match error {
        XlsxError::Password => DocumentError::Locked,
        error => DocumentError::damaged(KIND, error),
    }
}

struct Sheet<'a> {
    sink: &'a mut Sink,
    row: Vec<String>,
    /// From 1, as the program shows it; 0 before the first.
    number: u32,
    headed: bool,
}

impl Sheet<'_> {
    fn put(&mut self, row: u32, column: usize, text: String) -> Result<(), DocumentError> {
        if row != self.number {
            self.end_row()?;
            self.number = row;
        }
        if column >= DOCUMENT_CELLS_MAX {
            return Err(DocumentError::too_large("columns", column as u64 + 1, DOCUMENT_CELLS_MAX as u64));
        }
        if self.row.len() <= column {
            self.row.resize(column + 1, String::new());
        }
        self.row[column] = text;
        Ok(())
    }

    fn end_row(&mut self) -> Result<(), DocumentError> {
        let row = std::mem::take(&mut self.row);
        let filled = row.iter().filter(|cell| !cell.is_empty()).count();
        if filled == 0 {
            return Ok(());
        }
        // A single cell above a table is its title.
        if !self.headed && filled > 1 {
            self.headed = true;
            return self.sink.head(&row);
        }
        if self.headed { self.sink.row(&row, self.number) } else { self.sink.text(&row.concat()) }
    }
}

fn shown(value: &DataRef<'_>) -> String {
    match value {
        DataRef::Int(number) => number.to_string(),
        DataRef::Float(number) => number.to_string(),
        DataRef::String(text) | DataRef::DateTimeIso(text) | DataRef::DurationIso(text) => text.clone(),
        DataRef::SharedString(text) => (*text).to_owned(),
        DataRef::Bool(true) => "true".to_owned(),
        DataRef::Bool(false) => "false".to_owned(),
        DataRef::DateTime(time) => date(time),
        DataRef::Error(error) => error.to_string(),
        DataRef::Empty => String::new(),
    }
}

/// A day, and the time of day unless it is midnight.
fn date(time: &ExcelDateTime) -> String {
    if time.is_duration() {
        let seconds = (time.as_f64() * 86_400.0).round() as i64;
        return format!("{}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    }
    let (year, month, day, hour, minute, second, _) = time.to_ymd_hms_milli();
    let day = format!("{year:04}-{month:02}-{day:02}");
    if (hour, minute, second) == (0, 0, 0) { day } else { format!("{day} {hour:02}:{minute:02}:{second:02}") }
}
