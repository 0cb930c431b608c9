//! The `Date` header, rendered once a second.

use std::time::{SystemTime, UNIX_EPOCH};

use millrace_proto::http1::http_date;

/// The text of the present second.
pub struct DateCache {
    second: u64,
    text: String,
}

impl Default for DateCache {
    fn default() -> Self {
        let second = unix_s();
        Self { second, text: http_date(second) }
    }
}

impl DateCache {
    /// Renders anew when the second has changed.
    pub fn refresh(&mut self) {
        let second = unix_s();
        if second != self.second {
            self.second = second;
            self.text = http_date(second);
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
