//! Problems as pages: the same codes that programs get, in words for people.

use poem::{
    Response,
    http::{HeaderValue, StatusCode, header},
};

use domain::Problem;

use crate::{
    page,
    views::{self, Frame},
};

/// A problem's page. It names nobody: the problem may be that it is not known who asks.
pub(crate) fn render(problem: &Problem, request_id: &str) -> Response {
    let status = problem.code.status();
    let (title, mut paragraphs) = words(problem);
    if let Some(seconds) = problem.retry_after_s {
        paragraphs.push(format!("Try again in {}.", waiting(seconds)));
    }
    let view = views::Problem {
        frame: Frame {
            title: title.to_owned(),
            ..Frame::default()
        },
        status,
        paragraphs,
        request_id,
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = page::answer(status, &view);
    if let Some(seconds) = problem.retry_after_s {
        let value = HeaderValue::from(seconds.max(1));
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// The title, and what happened and what to do.
fn words(problem: &Problem) -> (&'static str, Vec<String>) {
    let own = || vec![problem.detail.clone()];
    let said = |words: &str| vec![words.to_owned()];
    match problem.code.status() {
        401 => (
            "You are not signed in",
            said("Sign in, then open the page again."),
        ),
        403 => ("This is not allowed", own()),
        404 => (
            "There is no such page",
            said(
                "Nothing has this address, or it belongs to a publisher that you are not a member of. \
                 Check the address for a typing mistake.",
            ),
        ),
        405 => (
            "This address can't be opened like this",
            said("It only takes a form of ours. Go back and use the button there."),
        ),
        408 => (
            "Your request took too long to arrive",
            said("Check your connection and try again."),
        ),
        409 => ("This can't be done now", own()),
        410 => ("This link does not work any more", own()),
        413 | 415 | 431 => (
            "This request can't be read",
            said(
                "It does not come from a form of ours. Go back, load the page again, and repeat it.",
            ),
        ),
        421 => (
            "This is not the address of this server",
            said("Open the address that the operator of this server gave you."),
        ),
        400 | 422 => ("Something in the form is not right", faults(problem)),
        429 => (
            "Too many attempts",
            said(
                "There were too many attempts from your network, or for this e-mail address. Nothing is locked.",
            ),
        ),
        503 => (
            "The server is busy",
            said("It could not do this now. Nothing is wrong with what you typed."),
        ),
        _ => (
            "Something went wrong on our side",
            said("What you did may or may not have been done. Look, and try again if it was not."),
        ),
    }
}

fn faults(problem: &Problem) -> Vec<String> {
    if problem.errors.is_empty() {
        return vec![problem.detail.clone()];
    }
    let errors = problem.errors.iter();
    errors.map(|error| error.detail.clone()).collect()
}

/// How long to wait, rounded up.
fn waiting(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..=1 => return "a second".to_owned(),
        2..=90 => (seconds, "seconds"),
        _ => (seconds.div_ceil(60), "minutes"),
    };
    format!("{count} {unit}")
}

#[cfg(test)]
mod tests {
    use domain::Code;

    use super::*;

    #[tokio::test]
    async fn every_problem_is_a_page_with_its_status_and_the_request_id() {
        for code in Code::ALL {
            let problem = Problem::new(*code, "<b>detail</b>").retry_after(120);
            let response = render(&problem, "req_1");
            assert_eq!(response.status().as_u16(), code.status());
            assert_eq!(response.header("retry-after"), Some("120"));
            assert_eq!(response.header("cache-control"), Some("no-store"));
            let body = response.into_body().into_string().await.unwrap();
            assert!(body.contains("req_1") && body.contains("Try again in 2 minutes."));
            assert!(!body.contains("<b>"), "texts are escaped");
        }
    }

    #[test]
    fn waiting_is_said_in_the_unit_that_people_use() {
        assert_eq!(waiting(0), "a second");
        assert_eq!(waiting(90), "90 seconds");
        assert_eq!(waiting(91), "2 minutes");
    }
}
