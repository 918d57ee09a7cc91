//! Reads the words in which a bucket (S3 and its kin) refuses a request.

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

/// Limit of each word or sentence that is repeated.
const MAX_WORD_BYTES: usize = 256;

/// The error in a bucket's answer. Fields that it does not have are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketError {
    /// As S3 lists them: `NoSuchBucket`.
    pub code: String,
    pub message: String,
    /// The region in which the bucket is.
    pub region: String,
    /// The server at which the bucket is.
    pub endpoint: String,
}

/// S3's `<Error>`, as far as it is used.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Answer {
    code: String,
    message: String,
    region: String,
    endpoint: String,
}

impl BucketError {
    /// Reads an answer that is no success. A body that is not S3's XML has no fields.
    #[must_use]
    pub fn read(headers: &HeaderMap, body: &str) -> Self {
        let Answer {
            code,
            message,
            region,
            endpoint,
        } = quick_xml::de::from_str(body).unwrap_or_default();
        let header = headers.get("x-amz-bucket-region");
        let header = header.and_then(|region| region.to_str().ok());
        Self {
            code: printable(&code),
            message: printable(&message),
            region: printable(header.unwrap_or(&region)),
            endpoint: printable(&endpoint),
        }
    }

    /// Whether the bucket itself is absent, rather than an object in it.
    #[must_use]
    pub fn is_of_bucket(&self) -> bool {
        self.code == "NoSuchBucket"
    }

    /// The fault, in the bucket's own words.
    #[must_use]
    pub fn describe(&self, status: StatusCode) -> String {
        let mut text = match (self.code.as_str(), self.message.as_str()) {
            ("", _) => format!("answered {}", status.as_u16()),
            (code, "") => code.to_owned(),
            (code, message) => format!("{code}: {}", message.trim_end_matches('.')),
        };
        if !self.region.is_empty() && is_about_place(&self.code, status) {
            text.push_str(&format!("; its region is {}", self.region));
        }
        if !self.endpoint.is_empty() {
            text.push_str(&format!("; its endpoint is {}", self.endpoint));
        }
        if self.code == "AccessDenied" {
            text.push_str("; so it answers a key that may read objects but not list them");
        }
        text
    }
}

/// Whether a refusal means that the bucket is in another region.
fn is_about_place(code: &str, status: StatusCode) -> bool {
    status.is_redirection()
        || matches!(
            code,
            "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException"
        )
}

/// One short line.
fn printable(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_WORD_BYTES);
    let text = text.get(..end).unwrap_or_default().trim();
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().map(plain).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn described(status: u16, body: &str) -> String {
        let error = BucketError::read(&HeaderMap::new(), body);
        error.describe(StatusCode::from_u16(status).unwrap())
    }

    #[test]
    fn the_words_are_the_buckets() {
        let signature = "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>\
             The request signature &amp; the &quot;key&quot; differ.</Message>\
             <StringToSign>AWS4</StringToSign></Error>";
        assert_eq!(
            described(403, signature),
            "SignatureDoesNotMatch: The request signature & the \"key\" differ"
        );
        let place = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>wrong region\
             </Message><Region>eu-west-1</Region></Error>";
        assert_eq!(
            described(400, place),
            "AuthorizationHeaderMalformed: wrong region; its region is eu-west-1"
        );
        let moved =
            "<Error><Code>PermanentRedirect</Code><Endpoint>b.s3.example</Endpoint></Error>";
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-bucket-region", HeaderValue::from_static("us-west-2"));
        assert_eq!(
            BucketError::read(&headers, moved).describe(StatusCode::MOVED_PERMANENTLY),
            "PermanentRedirect; its region is us-west-2; its endpoint is b.s3.example"
        );
        assert_eq!(described(502, "<html>Bad gateway</html>"), "answered 502");
        let denied = "<Error><Code>AccessDenied</Code></Error>";
        assert!(described(403, denied).contains("but not list"));
    }

    #[test]
    fn only_an_absent_bucket_is_of_the_bucket() {
        let read = |code: &str| {
            let body = format!("<Error><Code>{code}</Code></Error>");
            BucketError::read(&HeaderMap::new(), &body).is_of_bucket()
        };
        assert!(read("NoSuchBucket") && !read("NoSuchKey") && !read(""));
    }

    proptest! {
        #[test]
        fn nothing_that_a_bucket_says_is_long_or_breaks_a_line(
            text in "[^<&]*",
            long in 0_usize..2_000,
        ) {
            let text = format!("<Error><Code>{text}\n{}</Code></Error>", "é".repeat(long));
            let told = described(403, &text);
            prop_assert!(told.len() <= 2 * MAX_WORD_BYTES && !told.contains('\n'));
        }
    }
}
