//! The last answer of a connection, written without hyper.

use domain::Problem;

use super::{context::RequestId, error};

/// A problem as a whole HTTP/1.1 answer, for a connection that no endpoint speaks for. The connection
/// is closed after it. `more` are header fields besides the usual ones.
pub(super) fn last_answer(problem: &Problem, more: &[&str]) -> Vec<u8> {
    let id = RequestId::generate();
    let body = error::body(problem, id.as_str());
    let usual = [
        format!("HTTP/1.1 {} ", problem.code.status()),
        "connection: close".to_owned(),
        format!("content-type: {}", error::PROBLEM_JSON),
        format!("content-length: {}", body.len()),
        format!("x-request-id: {}", id.as_str()),
    ];
    let usual = usual.iter().map(String::as_str);
    let lines: Vec<&str> = usual.chain(more.iter().copied()).collect();
    let head = lines.join("\r\n") + "\r\n\r\n";
    [head.into_bytes(), body].concat()
}
