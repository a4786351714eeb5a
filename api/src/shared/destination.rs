//! URLs in requests, judged by the destination guard.

use domain::{Code, FaultCode, FieldError, Problem};
use outbound::{DestinationRefusal, HeaderRefusal, Policy};

/// Judges the URL that stands at `pointer`; its normalised form, the one to store and to show.
///
/// # Errors
/// The fault, for [`refuse`].
pub(crate) fn check(policy: &Policy, pointer: &str, url: &str) -> Result<String, FieldError> {
    policy
        .check_url(url)
        .map(|destination| destination.as_str().to_owned())
        .map_err(|refusal| {
            let code = match refusal {
                DestinationRefusal::UrlTooLong { .. } => FaultCode::TooLong,
                DestinationRefusal::UrlInvalid | DestinationRefusal::HostMissing => {
                    FaultCode::Format
                }
                _ => FaultCode::NotAllowed,
            };
            FieldError::new(pointer, code, sentence(refusal))
        })
}

/// What is wrong with a header that stands at `pointer`.
pub(crate) fn header_fault(pointer: impl Into<String>, refusal: HeaderRefusal) -> FieldError {
    let code = match refusal {
        HeaderRefusal::NameEmpty => FaultCode::TooShort,
        HeaderRefusal::NameTooLong | HeaderRefusal::ValueTooLong => FaultCode::TooLong,
        HeaderRefusal::NameInvalid | HeaderRefusal::ValueInvalid => FaultCode::Pattern,
        HeaderRefusal::ConnectionHeader | HeaderRefusal::Reserved => FaultCode::NotAllowed,
    };
    FieldError::new(pointer, code, sentence(refusal))
}

/// An error's words as a sentence.
pub(crate) fn sentence(error: impl std::fmt::Display) -> String {
    let mut text = format!("{error}.");
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

/// Refuses a body for its faults, or, when it has no others, for its destinations.
///
/// # Errors
/// `validation_failed` with all of them; `destination_refused`.
pub(crate) fn refuse(faults: Vec<FieldError>, refused: Vec<FieldError>) -> Result<(), Problem> {
    if faults.is_empty() && refused.is_empty() {
        return Ok(());
    }
    Err(refusal(faults, refused))
}

/// The problem of [`refuse`], where there is one for certain.
pub(crate) fn refusal(faults: Vec<FieldError>, refused: Vec<FieldError>) -> Problem {
    let code = if faults.is_empty() {
        Code::DestinationRefused
    } else {
        Code::ValidationFailed
    };
    let all = faults
        .into_iter()
        .chain(refused)
        .take(web::contract::FAULTS_MAX)
        .collect();
    Problem {
        code,
        ..Problem::invalid(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_normalised_or_refused_where_it_stands() {
        let check = |url| check(&Policy::default(), "/url", url);
        assert_eq!(
            check("https://EXAMPLE.com:443").unwrap(),
            "https://example.com/"
        );
        let fault = check("https://[::1]/").unwrap_err();
        assert_eq!(
            (fault.pointer.as_str(), fault.code.as_str()),
            ("/url", "not_allowed")
        );
        assert_eq!(
            fault.detail,
            "The destination is a loopback address, which is not allowed."
        );
        assert_eq!(check("no url").unwrap_err().code.as_str(), "format");
    }

    #[test]
    fn other_faults_come_first() {
        let fault = |pointer| FieldError::new(pointer, FaultCode::NotAllowed, "x");
        let only = refuse(Vec::new(), vec![fault("/url")]).unwrap_err();
        assert_eq!(only.code, Code::DestinationRefused);
        let both = refuse(vec![fault("/headers")], vec![fault("/url")]).unwrap_err();
        assert_eq!((both.code, both.errors.len()), (Code::ValidationFailed, 2));
        assert!(refuse(Vec::new(), Vec::new()).is_ok());
    }
}
