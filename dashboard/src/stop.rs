//! Why a page is not shown.

use domain::{Code, FaultCode, Problem};
use web::http::ApiError;

use crate::{
    page,
    views::{Field, Frame},
};

/// Why a page is not shown.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The person goes to another page first.
    Elsewhere(String),
    /// Something is wrong.
    Problem(Box<Problem>),
}

impl<T: Into<Problem>> From<T> for Stop {
    fn from(cause: T) -> Self {
        Self::Problem(Box::new(cause.into()))
    }
}

impl From<Stop> for poem::Error {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Elsewhere(page) => Self::from_response(page::see_other(&page)),
            Stop::Problem(problem) => ApiError::from(*problem).into(),
        }
    }
}

/// The form again, with what is wrong in it: next to the fields that the problem names, or above
/// them all. Problems that have nothing to do with what was typed have a page of their own.
///
/// # Errors
/// Such a problem.
pub(crate) fn explain(
    cause: impl Into<Problem>,
    frame: &mut Frame,
    fields: &mut [(&str, &mut Field)],
) -> Result<poem::http::StatusCode, Stop> {
    let problem = cause.into();
    let typed = matches!(
        problem.code,
        Code::ValidationFailed
            | Code::SignInFailed
            | Code::EmailUnverified
            | Code::UserDisabled
            | Code::AlreadyMember
            | Code::RoleTooLow
            | Code::QuotaExceeded
            | Code::LastOwner
    );
    if !typed {
        return Err(problem.into());
    }
    let mut placed = false;
    for error in &problem.errors {
        // A text that is no such field at all: the form was made by somebody else.
        if error.code == FaultCode::UnknownField {
            return Err(problem.clone().into());
        }
        let name = error.pointer.trim_start_matches('/');
        if let Some((_, field)) = fields.iter_mut().find(|(known, _)| *known == name) {
            field.error = Some(error.detail.clone());
            placed = true;
        }
    }
    if !placed {
        frame.fault = Some(problem.detail);
    }
    let status = poem::http::StatusCode::from_u16(problem.code.status());
    Ok(status.unwrap_or(poem::http::StatusCode::UNPROCESSABLE_ENTITY))
}
