//! Files of text that people write: options, secrets, lists.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Some editors put it first; it is no part of the text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The text of a file of at most `limit` bytes.
///
/// # Errors
///
/// The file cannot be read, is not UTF-8, or is longer: a part of it would be another text.
pub fn read(path: &Path, limit: u64) -> io::Result<String> {
    read_from(File::open(path)?, limit)
}

/// The same of what a reader gives.
///
/// # Errors
///
/// As for [`read`].
pub fn read_from(reader: impl Read, limit: u64) -> io::Result<String> {
    let wrong = |message| io::Error::new(io::ErrorKind::InvalidData, message);
    let mut bytes = Vec::new();
    reader
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(wrong(format!("it is longer than {limit} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
    Ok(match text.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let read = |bytes: &[u8]| read_from(bytes, 8);
        assert_eq!(read("\u{feff}a\r\n".as_bytes()).unwrap(), "a\r\n");
        assert_eq!(read(b"").unwrap(), "");
        assert_eq!(read("a\u{feff}".as_bytes()).unwrap(), "a\u{feff}");
        // As some shells write it.
        let utf_16 = read(&[0xff, 0xfe, b'a', 0]).unwrap_err();
        assert_eq!(utf_16.to_string(), "it is not UTF-8");
    }

    #[test]
    fn what_is_longer_is_not_read_in_part() {
        assert_eq!(read_from(&b"12345678"[..], 8).unwrap(), "12345678");
        for long in ["123456789", "12345678é"] {
            let error = read_from(long.as_bytes(), 8).unwrap_err();
            assert_eq!(error.to_string(), "it is longer than 8 bytes");
        }
    }
}
