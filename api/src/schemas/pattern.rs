//! What it costs to match a pattern.
//!
//! The engine matches in time linear in the text, whatever the pattern; but the factor may be the
//! pattern's number of states, which a few characters make as large as one likes. A pattern whose
//! deterministic automaton is small is matched by that automaton, one step for each byte. Of the
//! others each state counts for each byte.

use domain::FaultCode;
use regex_automata::{
    dfa::{StartKind, dense},
    nfa::thompson::{self, NFA},
};

/// Longest pattern, bytes. Some of what reads patterns takes time quadratic in their length.
const PATTERN_LENGTH: usize = 4096;
/// Largest compiled pattern, bytes.
pub(super) const PATTERN_BYTES: usize = 512 * 1024;
/// Largest automaton, bytes, that counts as small.
const AUTOMATON_BYTES: usize = 512 * 1024;
/// Memory, bytes, in which a thread builds the parts of an automaton that it needs. More than the
/// whole of a small one takes, so that no part of it is ever built twice.
pub(super) const MATCHER_BYTES: usize = 3 * AUTOMATON_BYTES;
/// Threads that match one publisher's payloads at once, mostly.
const MATCHING_THREADS: usize = 2;
/// How many states are stepped in the time of one step elsewhere.
const STATES_A_STEP: u64 = 8;

/// What a pattern costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PatternCost {
    /// Steps for each byte of a text.
    pub(super) steps: u64,
    /// Memory once it is compiled and in use, bytes.
    pub(super) bytes: u64,
}

/// Why a pattern is not taken: a code and a sentence.
pub(super) type Refusal = (FaultCode, String);

/// What a pattern costs; or why there is none.
pub(super) fn cost_of(pattern: &str) -> Result<PatternCost, Refusal> {
    if pattern.len() > PATTERN_LENGTH {
        let detail = format!("A pattern may have at most {PATTERN_LENGTH} bytes.");
        return Err((FaultCode::TooLong, detail));
    }
    let not_linear = || {
        let detail = "That is no regular expression that can be matched in linear time: it may \
            have no look-around and no back-references.";
        (FaultCode::NotAllowed, detail.to_owned())
    };
    let translated = jsonschema_regex::to_rust_regex(pattern).map_err(|()| not_linear())?;
    let forward = states_of(&translated, false).map_err(|error| match error.size_limit() {
        Some(_) => (FaultCode::TooLong, too_large()),
        None => not_linear(),
    })?;
    let automaton = automaton_of(&translated, &forward);
    let steps = match automaton {
        Some(_) => 1,
        None => (forward.states().len() as u64).div_ceil(STATES_A_STEP),
    };
    // Each thread that matches has an automaton of its own, built as it is needed.
    let a_thread = automaton.map_or(MATCHER_BYTES, |bytes| (2 * bytes).min(MATCHER_BYTES));
    let bytes = 4 * forward.memory_usage() + MATCHING_THREADS * a_thread;
    Ok(PatternCost {
        steps,
        bytes: bytes as u64,
    })
}

fn too_large() -> String {
    format!("The pattern is too large: at most {PATTERN_BYTES} bytes once it is compiled.")
}

fn states_of(translated: &str, reverse: bool) -> Result<NFA, Box<thompson::BuildError>> {
    let config = thompson::Config::new()
        .nfa_size_limit(Some(PATTERN_BYTES))
        .which_captures(if reverse {
            thompson::WhichCaptures::None
        } else {
            thompson::WhichCaptures::All
        })
        .reverse(reverse);
    thompson::Compiler::new()
        .configure(config)
        .build(translated)
        .map_err(Box::new)
}

/// The size of a pattern's deterministic automata in bytes, if they are small.
fn automaton_of(translated: &str, forward: &NFA) -> Option<usize> {
    let there = determined(forward, StartKind::Unanchored)?;
    // Only a pattern that may begin anywhere is ever matched from the end.
    if forward.is_always_start_anchored() {
        return Some(there);
    }
    let backward = states_of(translated, true).ok()?;
    Some(there + determined(&backward, StartKind::Anchored)?)
}

fn determined(nfa: &NFA, start: StartKind) -> Option<usize> {
    let config = dense::Config::new()
        .start_kind(start)
        .accelerate(false)
        .dfa_size_limit(Some(AUTOMATON_BYTES))
        .determinize_size_limit(Some(AUTOMATON_BYTES));
    let built = dense::Builder::new().configure(config).build_from_nfa(nfa);
    built.ok().map(|automaton| automaton.memory_usage())
}

/// `"format": "regex"`. The library's own reader looks for each group's name among all others.
pub(super) fn is_regex(text: &str) -> bool {
    text.len() <= PATTERN_LENGTH && jsonschema_regex::is_valid_ecma_regex(text)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn names_of_groups_are_not_looked_for_without_end() {
        let mut text = String::new();
        for at in 0..40_000 {
            write!(text, "(?<a{at}>)").unwrap();
        }
        assert!(!is_regex(&text));
        assert!(is_regex("^(?<year>[0-9]{4})$") && !is_regex("("));
    }

    #[test]
    fn ordinary_patterns_take_a_step_for_each_byte() {
        for pattern in [
            "^[a-z0-9-]{1,63}$",
            "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
            r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}:\d{2}(\.\d+)?Z)?$",
            r"^[^@\s]+@[^@\s]+\.[^@\s]+$",
            "^(red|green|blue)$",
            "^x-",
            "foo|bar",
            r"^\S+$",
            "^.{1,200}$",
            r"^https?://[^/\s]+(/.*)?$",
            r"^[A-Z]{2}\d{2}[A-Z0-9]{1,30}$",
            "secret$",
        ] {
            assert_eq!(cost_of(pattern).map(|cost| cost.steps), Ok(1), "{pattern}");
        }
    }

    #[test]
    fn of_others_each_state_counts() {
        let few = cost_of("^[01]*1[01]{30}$").unwrap().steps;
        assert!((5..30).contains(&few), "{few}");
        let many = cost_of("^[01]*1[01]{5000}$").unwrap().steps;
        assert!(many > 500, "{many}");
        // Cheap from the end, not from the beginning, and the other way round.
        assert!(cost_of("1[01]{60}$").unwrap().steps > 1);
        assert!(cost_of("[01]{60}1[01]*2").unwrap().steps > 1);
    }

    #[test]
    fn patterns_that_are_not_linear_or_too_large_are_refused() {
        for (pattern, code) in [
            ("^(?=a)", FaultCode::NotAllowed),
            ("^(?<!a)b", FaultCode::NotAllowed),
            (r"(a)\1", FaultCode::NotAllowed),
            ("(", FaultCode::NotAllowed),
            (r"(\pL{100}){100}", FaultCode::TooLong),
            ("((a{100}){100}){100}", FaultCode::TooLong),
        ] {
            let refused = cost_of(pattern).unwrap_err();
            assert_eq!(refused.0, code, "{pattern}: {}", refused.1);
        }
        assert_eq!(
            cost_of(&r"\cA".repeat(2000)).unwrap_err().0,
            FaultCode::TooLong
        );
    }
}
