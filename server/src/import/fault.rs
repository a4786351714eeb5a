//! Errors in the files of an import. They never repeat a text that may be a credential.

use std::fmt;

/// Most errors that are listed.
const LISTED_MAX: usize = 100;

/// One error in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: String,
    /// A JSON pointer into the file (RFC 6901); empty for the whole file.
    pub pointer: String,
    /// What is wrong, as a sentence.
    pub what: String,
}

impl Fault {
    /// An error of a file as a whole.
    pub fn of_file(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            pointer: String::new(),
            what: what.into(),
        }
    }

    /// An error at `pointer`.
    pub fn at(file: &str, pointer: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            pointer: pointer.into(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pointer.as_str() {
            "" => write!(f, "{}: {}", self.file, self.what),
            pointer => write!(f, "{} {pointer}: {}", self.file, self.what),
        }
    }
}

/// All errors as one message.
#[must_use]
pub fn listed(faults: &[Fault]) -> String {
    let head = match faults.len() {
        1 => "the files have a fault; nothing was written:".to_owned(),
        count => format!("the files have {count} faults; nothing was written:"),
    };
    let listed = faults.iter().take(LISTED_MAX).map(Fault::to_string);
    let more = faults.len().saturating_sub(LISTED_MAX);
    let more = (more > 0).then(|| format!("… and {more} more"));
    let lines: Vec<String> = [head].into_iter().chain(listed).chain(more).collect();
    lines.join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_says_where_it_is() {
        let fault = Fault::at("trains.json", "/trains/0/slug", "`slug` is required.");
        assert_eq!(
            fault.to_string(),
            "trains.json /trains/0/slug: `slug` is required."
        );
        let fault = Fault::of_file("trains.json", "is not a file");
        assert_eq!(fault.to_string(), "trains.json: is not a file");
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let fault = Fault::of_file("trains.json", "x");
        let text = listed(&vec![fault.clone(); 103]);
        assert_eq!(text.lines().count(), 102);
        assert!(text.starts_with("the files have 103 faults"));
        assert!(text.ends_with("and 3 more"));
        assert_eq!(listed(&vec![fault; 100]).lines().count(), 101);
    }
}
