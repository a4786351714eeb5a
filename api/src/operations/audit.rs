//! Who changed what: the publisher's log and the operator's.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use poem::{IntoResponse, Response};
use poem_openapi::{
    ApiResponse, Enum, Object, OpenApi,
    param::Query,
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, Registry},
    types::{ParseError, ParseFromParameter, ParseResult, ToJSON, Type},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use view_derive::{Example, View};

use domain::{
    Problem,
    audit::{Action, AuditRow},
    id::{AuditId, Id as _},
    permission::{AuditRead, OperatorRead},
};
use persistence::{AuditFilter, ChainFault, Checkpoint, Verification};

use crate::{
    auth::{Caller, Operator},
    publishers::credentials::EXAMPLE_TOKEN_ID,
    shared::{App, Listed, Ok, PageQuery, Tag, Time, own_value},
};
use web::http::ApiError;

/// Steps of an export that wait for a slow reader.
const EXPORT_AHEAD: usize = 2;
/// The media type of newline-delimited JSON.
const NDJSON: &str = "application/x-ndjson";

/// A word of the audit vocabulary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ActionName(Action);

impl Type for ActionName {
    own_value!(
        "AuditAction",
        MetaSchema {
            enum_items: Action::ALL.map(|action| action.as_str().into()).into(),
            ..MetaSchema::new("string")
        }
    );
}

impl ParseFromParameter for ActionName {
    fn parse_from_parameter(text: &str) -> ParseResult<Self> {
        Action::parse(text)
            .map(Self)
            .ok_or_else(|| ParseError::custom("no such action"))
    }
}

/// Who acted.
#[derive(Object, View, Example)]
#[view(of = AuditRow)]
struct AuditActor {
    /// `bootstrap`, `admin`, `runner` or `system`.
    #[view(field = actor_kind)]
    #[example("admin")]
    kind: String,
    /// The credential's identifier, or the name of a part of the service.
    #[view(field = actor_id)]
    #[example(EXAMPLE_TOKEN_ID)]
    id: String,
}

/// What was changed.
#[derive(Object, View, Example)]
#[view(of = AuditRow)]
struct AuditTarget {
    /// What kind of thing.
    #[view(field = target_kind)]
    #[example("token")]
    kind: String,
    /// Its identifier.
    #[view(field = target_id)]
    #[example("tok_01h455vb4pex5vsknk084sn02r")]
    id: String,
}

/// One line of the log.
#[derive(Object, View, Example)]
#[oai(example)]
#[view(of = AuditRow)]
pub(crate) struct AuditEntry {
    /// `aud_…`
    #[example("aud_01h455vb4pex5vsknk084sn02q")]
    #[view(from = AuditId::from_uuid(of.id).into())]
    id: String,
    /// Counts from 1 without gaps.
    #[example(42)]
    seq: i64,
    /// When.
    at: Time,
    /// Who did it.
    #[view(from = of.into())]
    actor: AuditActor,
    /// What was done.
    #[example(Action::TokenMinted.as_str())]
    action: String,
    /// To what.
    #[view(from = of.into())]
    target: AuditTarget,
    /// The request that did it.
    #[oai(nullable)]
    #[example("req_01h455vb4pex5vsknk084sn02q")]
    request_id: Option<String>,
    /// The caller's address.
    #[oai(nullable)]
    #[example("203.0.113.9")]
    address: Option<String>,
    /// The caller's program, in its own words.
    #[oai(nullable)]
    #[example("curl/8.5.0")]
    user_agent: Option<String>,
    /// Further facts; never a credential.
    #[example(json!({ "kind": "runner" }))]
    #[view(from = tree_of(&of.metadata))]
    metadata: Value,
}

/// JSON as a tree; text that is none as a string.
fn tree_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// What is wrong with a log.
#[derive(Clone, Copy, Enum)]
#[oai(rename_all = "snake_case")]
enum AuditFaultKind {
    /// A row is missing before this one, or rows changed places.
    Gap,
    /// A row's content, or its place in the chain, was changed.
    Edited,
    /// A row that the service did not write stands behind the log's end.
    PastHead,
    /// The log ends elsewhere than it should.
    Head,
    /// The row of the checkpoint is missing or another one.
    Checkpoint,
}

/// Where a log is not what was written.
#[derive(Object)]
struct AuditFault {
    /// What is wrong.
    kind: AuditFaultKind,
    /// The number of the row.
    seq: i64,
}

/// What a verification found.
#[derive(Object, Example)]
#[oai(example)]
struct AuditVerification {
    /// Whether the log is as it was written.
    #[example(true)]
    ok: bool,
    /// Rows that were checked.
    #[example(42)]
    checked: u64,
    /// The log's end. Keep it elsewhere and send it with a later verification: a log whose tail
    /// was cut off can't be told from a shorter one without it.
    #[example(checkpoint_text(&Checkpoint { seq: 42, mac: [0xa5; 32] }))]
    checkpoint: String,
    /// The first fault.
    #[oai(nullable)]
    fault: Option<AuditFault>,
}

impl From<Verification> for AuditVerification {
    fn from(found: Verification) -> Self {
        let fault = found.fault.map(|fault| {
            let (kind, seq) = match fault {
                ChainFault::Gap { seq } => (AuditFaultKind::Gap, seq),
                ChainFault::Edited { seq } => (AuditFaultKind::Edited, seq),
                ChainFault::PastHead { seq } => (AuditFaultKind::PastHead, seq),
                ChainFault::Head { seq } => (AuditFaultKind::Head, seq),
                ChainFault::Checkpoint { seq } => (AuditFaultKind::Checkpoint, seq),
            };
            AuditFault { kind, seq }
        });
        Self {
            ok: fault.is_none(),
            checked: found.checked,
            checkpoint: checkpoint_text(&found.head),
            fault,
        }
    }
}

/// `42.` and the row's code in base64url.
fn checkpoint_text(point: &Checkpoint) -> String {
    format!("{}.{}", point.seq, URL_SAFE_NO_PAD.encode(point.mac))
}

fn parse_checkpoint(text: &str) -> Result<Checkpoint, ApiError> {
    let parse = || {
        let (seq, mac) = text.split_once('.')?;
        let digits = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
        Some(Checkpoint {
            seq: digits.then(|| seq.parse().ok()).flatten()?,
            mac: URL_SAFE_NO_PAD.decode(mac).ok()?.try_into().ok()?,
        })
    };
    parse().ok_or_else(|| {
        let detail = "`checkpoint` takes the `checkpoint` of an earlier verification.";
        Problem::parameter("/query/checkpoint", detail).into()
    })
}

/// The log as a stream: one [`AuditEntry`] a line, oldest first.
struct Export(mpsc::Receiver<Bytes>);

impl IntoResponse for Export {
    fn into_response(self) -> Response {
        let lines = futures_util::stream::unfold(self.0, |mut lines| async move {
            let chunk = lines.recv().await?;
            Some((Ok::<_, std::io::Error>(chunk), lines))
        });
        Response::builder()
            .content_type(NDJSON)
            .body(poem::Body::from_bytes_stream(lines))
    }
}

impl ApiResponse for Export {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![MetaResponse {
                description: "One entry a line, oldest first.",
                status: Some(200),
                status_range: None,
                content: vec![MetaMediaType {
                    content_type: NDJSON,
                    schema: AuditEntry::schema_ref(),
                }],
                headers: Vec::new(),
            }],
        }
    }

    fn register(registry: &mut Registry) {
        AuditEntry::register(registry);
    }
}

/// A listing of a log. All are asked alike; which log it is, and who may ask, differs.
macro_rules! listing {
    (
        $(#[doc = $words:tt])*
        $name:ident: $path:tt, $operation:tt, $tag:tt, $who:ty => $store:ident
    ) => {
        pub(crate) struct $name;

        #[expect(
            clippy::too_many_arguments,
            reason = "each is a parameter of the operation"
        )]
        #[OpenApi(prefix_path = "/v1", tag = $tag)]
        impl $name {
            $(#[doc = $words])*
            #[oai(path = $path, method = "get", operation_id = $operation, tag = "Tag::Audit")]
            async fn list(
                &self,
                who: $who,
                /// Only this action.
                action: Query<Option<ActionName>>,
                /// Only actions of this credential.
                #[oai(validator(max_length = 100))]
                actor: Query<Option<String>>,
                /// Only actions on this target.
                #[oai(validator(max_length = 100))]
                target: Query<Option<String>>,
                /// Only at or after this moment.
                since: Query<Option<Time>>,
                /// Only before this moment.
                until: Query<Option<Time>>,
                page: PageQuery,
            ) -> Result<Listed<AuditEntry>, ApiError> {
                let filter = AuditFilter {
                    action: action.0.map(|name| name.0),
                    actor: actor.0,
                    target: target.0,
                    since: since.0.map(|at| at.0),
                    until: until.0.map(|at| at.0),
                };
                let list = who.list(page).await?;
                let log = who.$store().operations();
                Ok(list.answer(log.audit(&filter, list.page()?).await?, Into::into))
            }
        }
    };
}

listing! {
    /// List the publisher's audit log
    ///
    /// Every change of configuration, credentials and access, and refusals of the own tokens
    /// (one a minute for each token and reason). Newest first.
    OwnLog: "/publishers/me/audit", "list_audit", "Tag::Audit", Caller<AuditRead> => scoped
}

listing! {
    /// List the operator's audit log
    ///
    /// What the operator did, newest first. What it did to a publisher stands in the publisher's
    /// log too.
    OperatorLog: "/audit", "list_operator_audit", "Tag::Operator", Operator<OperatorRead> => system
}

/// A publisher's log as a whole.
pub(crate) struct Audit {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1/publishers/me/audit", tag = "Tag::Audit")]
impl Audit {
    /// Export the publisher's audit log
    ///
    /// All of it, oldest first, one JSON object a line. The stream ends early when the token that
    /// asked is revoked; compare the last `seq` with the log's.
    #[oai(path = "/export", method = "get", operation_id = "export_audit")]
    async fn export(&self, who: Caller<AuditRead>) -> Result<Export, ApiError> {
        let operations = who.scoped().operations();
        let first = operations.audit_after(0).await?;
        let (lines, receiver) = mpsc::channel(EXPORT_AHEAD);
        let standing = who.standing();
        // Reads go on in a task of their own: a caller that goes away must not cancel one.
        self.app.tasks.spawn(async move {
            let mut rows = first;
            while let Some(last) = rows.last().map(|row| row.seq) {
                if lines.send(ndjson(rows)).await.is_err() {
                    return;
                }
                if standing.check().await.is_err() {
                    return;
                }
                rows = match operations.audit_after(last).await {
                    Ok(rows) => rows,
                    Err(error) => {
                        tracing::warn!(%error, "an export of an audit log broke off");
                        return;
                    }
                };
            }
        });
        Ok(Export(receiver))
    }

    /// Verify the publisher's audit log
    ///
    /// Walks the whole chain. It finds rows that were edited, moved or removed; with a checkpoint
    /// of an earlier check also a tail that was cut off since.
    #[oai(path = "/verify", method = "get", operation_id = "verify_audit")]
    async fn verify(
        &self,
        who: Caller<AuditRead>,
        /// `checkpoint` of an earlier check.
        #[oai(validator(max_length = 100))]
        checkpoint: Query<Option<String>>,
    ) -> Result<Ok<AuditVerification>, ApiError> {
        let point = checkpoint.0.as_deref().map(parse_checkpoint).transpose()?;
        let operations = who.scoped().operations();
        let found = operations.verify_audit(point.as_ref()).await?;
        Ok(Ok::show(&found.into(), None))
    }
}

fn ndjson(rows: Vec<AuditRow>) -> Bytes {
    let mut text = String::new();
    for row in rows {
        text.push_str(&AuditEntry::from(row).to_json_string());
        text.push('\n');
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_parses_back() {
        let point = Checkpoint {
            seq: 42,
            mac: [7; 32],
        };
        assert_eq!(parse_checkpoint(&checkpoint_text(&point)).unwrap(), point);
        for odd in ["", "42", "42.", ".AAAA", "-1.AAAA", "42.AAAA", "x.y"] {
            assert!(parse_checkpoint(odd).is_err(), "{odd}");
        }
    }
}
