//! The text form of the keys of signed URLs: one key per line, so that one can be added before
//! another is removed.

use super::signed_url::Signer;

/// Shorter secrets can be guessed offline from one signed URL.
const LEAST_SECRET_BYTES: usize = 16;

/// Names the invalid line. Never shows a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("line {0}: expected a key id, a space and a secret")]
    Line(usize),
    #[error("line {0}: a key id is letters, digits, '-' and '_'")]
    Id(usize),
    #[error("line {0}: a secret has at least {LEAST_SECRET_BYTES} bytes")]
    Short(usize),
    #[error("line {0}: the key id was there before")]
    Twice(usize),
    #[error("there is no key in it")]
    Empty,
}

/// Empty lines and lines that begin with `#` are ignored.
pub fn parse(text: &str) -> Result<Signer, KeysError> {
    let mut keys: Vec<(String, Vec<u8>)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (id, secret) = line
            .split_once([' ', '\t'])
            .ok_or(KeysError::Line(number))?;
        let secret = secret.trim();
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !id.bytes().all(plain) {
            return Err(KeysError::Id(number));
        }
        if secret.len() < LEAST_SECRET_BYTES {
            return Err(KeysError::Short(number));
        }
        if keys.iter().any(|(known, _)| known == id) {
            return Err(KeysError::Twice(number));
        }
        keys.push((id.to_owned(), secret.as_bytes().to_vec()));
    }
    if keys.is_empty() {
        return Err(KeysError::Empty);
    }
    Ok(Signer::new(keys))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_a_key() {
        let text =
            "# rotated in May\n\nold 0123456789abcdef\r\nnew\t  fedcba9876543210 with space\n";
        assert!(parse(text).is_ok());
        let error = |text| parse(text).err();
        assert_eq!(error("x\n"), Some(KeysError::Line(1)));
        assert_eq!(error("\na/b 0123456789abcdef"), Some(KeysError::Id(2)));
        assert_eq!(error("a short"), Some(KeysError::Short(1)));
        let twice = "a 0123456789abcdef\na 0123456789abcdef";
        assert_eq!(error(twice), Some(KeysError::Twice(2)));
        assert_eq!(error("# nothing\n"), Some(KeysError::Empty));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
