//! Problems: the errors that callers see (RFC 9457 problem details), with a closed list of codes.

use std::fmt;

use crate::fault::FaultCode;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $status:literal, $title:literal, $help:literal;)*) => {
        /// A problem's stable code. Programs branch on it; people read title and detail.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable word for the code.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The HTTP status of an answer with this code.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// The code for a word; `None` for an unknown one.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($code => Some(Self::$variant),)* _ => None }
            }

            /// A short summary that never changes (RFC 9457 §3.1.3).
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// What the caller can do about it; for the documentation.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON.
    MalformedJson = "malformed_json", 400, "The body is not valid JSON",
        "Send one JSON value in UTF-8, nested at most 32 levels deep, without repeated member names.";
    /// The bytes that arrived are no HTTP request.
    MalformedRequest = "malformed_request", 400, "The request is not valid HTTP",
        "Check the request line and the header fields. The connection is closed after this answer.";
    /// A header or query parameter is malformed or out of range.
    InvalidParameter = "invalid_parameter", 400, "A parameter is not valid",
        "`errors` names the parameter and what it takes.";
    /// The cursor was not issued for this list.
    InvalidCursor = "invalid_cursor", 400, "The cursor is not valid for this list",
        "Start again without a cursor; keep the other parameters the same from page to page.";
    /// Two tokens of trains came with one request.
    TwoTokens = "two_tokens", 400, "Two different train tokens were sent",
        "Send one train token, as `Authorization: Bearer` or as `x-api-key`.";
    /// A request of a session did not name its publisher.
    PublisherRequired = "publisher_required", 400, "The request names no publisher",
        "Send the publisher's slug as `Stationmaster-Publisher`.";
    /// The text is no link of ours.
    LinkInvalid = "link_invalid", 400, "The link is not valid",
        "Copy the whole link from the mail, or ask for a new one.";
    /// A provider's answer was not accepted.
    ProviderRefused = "provider_refused", 400, "The other service did not sign you in",
        "Start again.";
    /// The address, the password, the code or the passkey is wrong.
    SignInFailed = "sign_in_failed", 401, "That did not sign you in",
        "Check what you gave. An unknown address and a wrong password are answered alike.";
    /// The request has no credential, or none that is live.
    Unauthenticated = "unauthenticated", 401, "A valid token is needed",
        "Send a live token as `Authorization: Bearer`. Missing, malformed, unknown, expired and revoked tokens are answered alike.";
    /// The token is live but of the wrong kind.
    WrongTokenKind = "wrong_token_kind", 403, "This kind of token may not call this operation",
        "The detail names the kinds of token that may.";
    /// A person has to have signed in moments ago.
    RecentSignInRequired = "recent_sign_in_required", 403, "Confirm that it is you",
        "Sign in again, then repeat the request within five minutes.";
    /// A request of a browser did not prove that one of our own pages sent it.
    CsrfFailed = "csrf", 403, "The request did not come from a page of this service",
        "Load the page again. A program sends the `csrf_token` of `GET /v1/me` as `X-CSRF-Token`.";
    /// Nobody has proved to receive mail at the address.
    EmailUnverified = "email_unverified", 403, "The address is not verified",
        "Ask for a link by mail and open it.";
    /// Nobody may register.
    RegistrationClosed = "registration_closed", 403, "Registration is closed",
        "Ask a member of a publisher for an invitation, or the operator.";
    /// The address that a provider names is a user's who has not connected that sign-in.
    ProviderNotLinked = "provider_not_linked", 403, "That sign-in is not connected yet",
        "Sign in as before, then connect it on your own page.";
    /// The user is disabled.
    UserDisabled = "user_disabled", 403, "The user is disabled",
        "Ask the operator.";
    /// Another browser asked for the link.
    OtherBrowser = "other_browser", 403, "Another browser asked for this link",
        "Open it there, or confirm that you want to sign in here.";
    /// Who asks has too low a role for that member.
    RoleTooLow = "role_too_low", 403, "That takes a higher role",
        "Nobody gives or takes a role above one's own. Ask an owner.";
    /// The inviter may not invite any more.
    InviterLostRights = "inviter_lost_rights", 403, "Who invited may not invite any more",
        "Ask for another invitation.";
    /// The publisher is suspended.
    PublisherSuspended = "publisher_suspended", 403, "The publisher is suspended",
        "Ask the operator. Nothing is lost meanwhile.";
    /// The train is disabled.
    TrainDisabled = "train_disabled", 403, "The train is disabled",
        "Its publisher can enable it.";
    /// The train has no account of the requested upstream.
    NoAccountOfUpstream = "no_account_of_upstream", 403, "The train has no account of that upstream",
        "Add an account of that provider or base URL to the train, or use the gateway of another upstream.";
    /// A proxy asked without naming the upstream, and the train has several.
    SeveralUpstreams = "several_upstreams", 403, "The train has accounts of several upstreams",
        "Let the proxy say with `provider` or `base_url` which upstream it serves.";
    /// No credential can be lent; for proxies that handle only 401 and 403.
    NothingToLend = "nothing_to_lend", 403, "No credential can be lent now",
        "`X-Stationmaster-Status` says which status it would be for a caller that knows more of them.";
    /// The caller has nothing with that name.
    NotFound = "not_found", 404, "Not found",
        "Check the path and the identifier. What belongs to another publisher is answered in the same way.";
    /// The run's pipeline has no subcommand of that name.
    UnknownSubcommand = "unknown_subcommand", 404, "The pipeline has no such subcommand",
        "The detail lists the names that there are. A run keeps the version of its pipeline that it was created with.";
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405, "The path does not take this method",
        "The `Allow` header lists the methods.";
    /// The link was used.
    LinkUsed = "link_used", 410, "The link was used already",
        "Each link is good once. Ask for a new one.";
    /// The link is too old, or a newer one took its place.
    LinkExpired = "link_expired", 410, "The link has expired",
        "Ask for a new one. Only the newest link is good.";
    /// The request was sent to a host that is not this service's.
    WrongHost = "wrong_host", 421, "This service has another host",
        "Use the address that the operator has made public.";
    /// The request took too long to arrive.
    RequestTimeout = "request_timeout", 408, "The request did not arrive in time",
        "Send the body without pauses.";
    /// A publisher's slug is in use.
    SlugTaken = "slug_taken", 409, "The slug is in use",
        "Choose another slug. Slugs of publishers are the operator's to choose, those of trains the publisher's.";
    /// Another account of the publisher has that name.
    NameTaken = "name_taken", 409, "The name is in use",
        "Choose another name; names are unique within a publisher.";
    /// The person is a member already.
    AlreadyMember = "already_member", 409, "That person is a member already",
        "Change the member's role instead.";
    /// Another user has the address.
    AddressTaken = "address_taken", 409, "The address is another user's",
        "An address belongs to one user. Take another one, or sign in as that user.";
    /// Another user has the passkey.
    PasskeyTaken = "passkey_taken", 409, "The passkey is known already",
        "Use another authenticator.";
    /// Another user has the sign-in elsewhere.
    IdentityTaken = "identity_taken", 409, "That sign-in belongs to another user",
        "Sign in with it and disconnect it there, or use another one.";
    /// The change would leave a publisher without an owner.
    LastOwner = "last_owner", 409, "A publisher keeps at least one owner",
        "Make somebody else an owner first.";
    /// The change would leave no admin token.
    LastAdminToken = "last_admin_token", 409, "The last live admin token can't be deleted",
        "Rotate it, or mint another one first.";
    /// The change would leave no secret of the kind.
    LastSecret = "last_secret", 409, "The last live secret of a kind can't be deleted",
        "Rotate it, or mint another one first.";
    /// A limit of the publisher is reached.
    QuotaExceeded = "quota_exceeded", 409, "A quota is used up",
        "Remove what is not needed, or ask the operator for more.";
    /// The stored answer held a credential and has been wiped.
    SecretNoLongerAvailable = "secret_no_longer_available", 409, "The answer held a credential and is no longer kept",
        "The change was made. Rotate the credential to get a new one.";
    /// The pipeline has unfinished runs.
    PipelineInUse = "pipeline_in_use", 409, "The pipeline has unfinished runs",
        "Cancel them or wait for them.";
    /// The pipeline is paused.
    PipelinePaused = "pipeline_paused", 409, "The pipeline is paused",
        "Create the run without `claim`: it waits until the pipeline is resumed.";
    /// The pipeline's limit on concurrent runs is reached.
    ConcurrencyLimit = "concurrency_limit", 409, "The pipeline's concurrency limit is reached",
        "Create the run without `claim`, or wait until one of them ends.";
    /// The run is finished already.
    RunFinished = "run_finished", 409, "The run has already finished",
        "A finished run never changes.";
    /// The claim does not, or no longer, hold the run.
    ClaimLost = "claim_lost", 409, "The claim no longer holds the run",
        "Stop working on this run: another claim may hold it, or it is finished.";
    /// The endpoint is disabled.
    EndpointDisabled = "endpoint_disabled", 409, "The endpoint is disabled",
        "Enable it first.";
    /// The account holds the other type of credential.
    WrongCredentialType = "wrong_credential_type", 409, "The account's credential type does not allow this",
        "Only an `oauth` account can be refreshed.";
    /// The upstream gave no new token.
    RefreshFailed = "refresh_failed", 409, "The upstream did not give a new token",
        "The detail says why. An unexpired token stays in use.";
    /// The upstream did not accept the login.
    LoginFailed = "login_failed", 409, "The upstream did not accept the login",
        "Start the login again.";
    /// The change is not possible in the publisher's present state.
    WrongPublisherState = "wrong_publisher_state", 409, "The publisher's state does not allow this",
        "The detail says which state it is in.";
    /// `If-Match` names another revision.
    PreconditionFailed = "precondition_failed", 412, "The resource has changed since that revision",
        "Read it again and send its current `ETag` as `If-Match`.";
    /// The body is too large.
    BodyTooLarge = "body_too_large", 413, "The body is too large",
        "The detail says how many bytes are taken.";
    /// The body is not declared as JSON.
    UnsupportedMediaType = "unsupported_media_type", 415, "The body must be JSON",
        "Send `Content-Type: application/json`.";
    /// The body is JSON, but does not match the operation's schema.
    ValidationFailed = "validation_failed", 422, "The body does not match the operation's schema",
        "`errors` lists every fault with a JSON pointer (RFC 6901) to it.";
    /// The key was used for another request.
    IdempotencyKeyReused = "idempotency_key_reused", 422, "The Idempotency-Key belongs to another request",
        "Use a fresh key for each distinct request.";
    /// The URL is no allowed destination.
    DestinationRefused = "destination_refused", 422, "The URL is not an allowed destination",
        "Use an https URL on a public address without credentials in it.";
    /// The request's head is too large.
    HeadTooLarge = "head_too_large", 431, "The head of the request is too large",
        "Send fewer or shorter header fields. The connection is closed after this answer.";
    /// Too many requests.
    RateLimited = "rate_limited", 429, "Too many requests",
        "Wait as long as `Retry-After` says.";
    /// The publisher uses its whole share of a resource.
    ShareExceeded = "share_exceeded", 429, "The publisher's share of a resource is in use",
        "The detail names the resource. Wait as long as `Retry-After` says; other publishers are not affected.";
    /// No account of the train is usable now.
    TrainExhausted = "train_exhausted", 429, "No account of the train is usable now",
        "Wait as long as `Retry-After` says. `errors` lists why for each account.";
    /// The service has a defect.
    Internal = "internal", 500, "Something went wrong on our side",
        "Try again. If it fails again, tell the operator the request id.";
    /// A provider can't be reached, or fails.
    ProviderUnavailable = "provider_unavailable", 502, "The other service does not answer",
        "Try again in a moment, or sign in in another way.";
    /// The store can't be reached, or can't write.
    StoreUnavailable = "store_unavailable", 503, "The store is not available",
        "The detail says whether nothing was changed, or whether that is not known. Wait as long as `Retry-After` says and send the request again, with its `Idempotency-Key` if it had one.";
    /// The server is stopping, or has no capacity left.
    Overloaded = "overloaded", 503, "The server can't take the request now",
        "The detail says whether the work may still go on. Wait as long as `Retry-After` says and send the request again.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One error in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// JSON pointer into the body (RFC 6901), or `/query/NAME`, `/header/NAME`, `/path/NAME`.
    pub pointer: String,
    /// What is wrong there.
    pub code: FaultCode,
    /// A sentence for people.
    pub detail: String,
}

impl FieldError {
    /// An error at `pointer`.
    #[must_use]
    pub fn new(pointer: impl Into<String>, code: FaultCode, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            code,
            detail: detail.into(),
        }
    }
}

/// A refused request, with what the caller may know of the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct Problem {
    /// The stable code.
    pub code: Code,
    /// What happened this time. Contains neither internals nor the caller's input.
    pub detail: String,
    /// The errors in the request, if they can be named.
    pub errors: Vec<FieldError>,
    /// After how many seconds to try again.
    pub retry_after_s: Option<u64>,
}

impl Problem {
    /// A problem with a detail.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after_s: None,
        }
    }

    /// The one problem for everything that does not exist or belongs to another publisher.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(
            Code::NotFound,
            "Nothing has this path or identifier, or it belongs to another publisher.",
        )
    }

    /// The problem for errors in a body.
    #[must_use]
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] => one.detail.clone(),
            many => format!("The body has {} faults.", many.len()),
        };
        Self {
            code: Code::ValidationFailed,
            detail,
            errors,
            retry_after_s: None,
        }
    }

    /// The problem for one error in a body.
    #[must_use]
    pub fn field(pointer: &str, code: FaultCode, detail: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(pointer, code, detail)])
    }

    /// The problem for a header or query parameter; `pointer` is `/query/NAME` or `/header/NAME`.
    #[must_use]
    pub fn parameter(pointer: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let errors = vec![FieldError::new(pointer, FaultCode::Invalid, detail.clone())];
        Self {
            code: Code::InvalidParameter,
            detail,
            errors,
            retry_after_s: None,
        }
    }

    /// Adds the time after which to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
}

impl From<Code> for Problem {
    /// The problem with the code's title as its detail.
    fn from(code: Code) -> Self {
        Self::new(code, format!("{}.", code.title()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_documented() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code} twice");
            assert!((400..600).contains(&code.status()));
            assert!(!code.title().is_empty() && code.help().ends_with('.'));
        }
    }
}
