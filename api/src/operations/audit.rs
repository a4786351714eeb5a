//! Who changed what: the publisher's log and the operator's.

use std::{borrow::Cow, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use poem::{IntoResponse, Response};
use poem_openapi::{
    ApiResponse, Enum, Object, OpenApi,
    param::Query,
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
    types::{Example, ParseError, ParseFromParameter, ParseResult, ToJSON, Type},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use domain::{
    Problem,
    audit::{Action, AuditRow},
    credential::CredentialKind,
    id::{AuditId, Id as _},
};
use persistence::{AuditFilter, Checkpoint, Fault, Verification};

use crate::{
    auth::{Admin, Operator, still_good},
    shared::{
        App,
        common::{Ok, Tag, Time},
        cursor::{List, Listed},
        examples::EXAMPLE_AT,
    },
};
use web::http::{ApiError, RequestContext};

/// Steps of an export that wait for a slow reader.
const EXPORT_AHEAD: usize = 2;
/// The media type of newline-delimited JSON.
const NDJSON: &str = "application/x-ndjson";

/// A word of the audit vocabulary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ActionName(Action);

impl Type for ActionName {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "AuditAction".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        let words = Action::ALL.iter().map(|action| json!(action.as_str()));
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            enum_items: words.collect(),
            ..MetaSchema::new("string")
        }))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(self.as_raw_value().into_iter())
    }
}

impl ParseFromParameter for ActionName {
    fn parse_from_parameter(text: &str) -> ParseResult<Self> {
        Action::parse(text)
            .map(Self)
            .ok_or_else(|| ParseError::custom("no such action"))
    }
}

/// Who acted.
#[derive(Object)]
struct AuditActor {
    /// `bootstrap`, `admin`, `runner` or `system`.
    kind: String,
    /// The credential's identifier, or the name of a part of the service.
    id: String,
}

/// What was changed.
#[derive(Object)]
struct AuditTarget {
    /// What kind of thing.
    kind: String,
    /// Its identifier.
    id: String,
}

/// One line of the log.
#[derive(Object)]
#[oai(example)]
pub(crate) struct AuditEntry {
    /// `aud_…`
    id: String,
    /// Counts from 1 without gaps.
    seq: i64,
    /// When.
    at: Time,
    /// Who did it.
    actor: AuditActor,
    /// What was done.
    action: String,
    /// To what.
    target: AuditTarget,
    /// The request that did it.
    #[oai(nullable)]
    request_id: Option<String>,
    /// The caller's address.
    #[oai(nullable)]
    address: Option<String>,
    /// The caller's program, in its own words.
    #[oai(nullable)]
    user_agent: Option<String>,
    /// Further facts; never a credential.
    metadata: Value,
}

impl From<AuditRow> for AuditEntry {
    fn from(row: AuditRow) -> Self {
        Self {
            id: AuditId::from_uuid(row.id).to_string(),
            seq: row.seq,
            at: row.at.into(),
            actor: AuditActor {
                kind: row.actor_kind,
                id: row.actor_id,
            },
            action: row.action,
            target: AuditTarget {
                kind: row.target_kind,
                id: row.target_id,
            },
            request_id: row.request_id,
            address: row.address,
            user_agent: row.user_agent,
            metadata: serde_json::from_str(&row.metadata).unwrap_or(Value::String(row.metadata)),
        }
    }
}

impl Example for AuditEntry {
    fn example() -> Self {
        Self {
            id: "aud_01h455vb4pex5vsknk084sn02q".into(),
            seq: 42,
            at: EXAMPLE_AT,
            actor: AuditActor {
                kind: "admin".into(),
                id: crate::publishers::credentials::EXAMPLE_TOKEN_ID.into(),
            },
            action: Action::TokenMinted.as_str().into(),
            target: AuditTarget {
                kind: "token".into(),
                id: "tok_01h455vb4pex5vsknk084sn02r".into(),
            },
            request_id: Some("req_01h455vb4pex5vsknk084sn02q".into()),
            address: Some("203.0.113.9".into()),
            user_agent: Some("curl/8.5.0".into()),
            metadata: json!({ "kind": "runner" }),
        }
    }
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
#[derive(Object)]
#[oai(example)]
struct AuditVerification {
    /// Whether the log is as it was written.
    ok: bool,
    /// Rows that were checked.
    checked: u64,
    /// The log's end. Keep it elsewhere and send it with a later verification: a log whose tail
    /// was cut off can't be told from a shorter one without it.
    checkpoint: String,
    /// The first fault.
    #[oai(nullable)]
    fault: Option<AuditFault>,
}

impl From<Verification> for AuditVerification {
    fn from(found: Verification) -> Self {
        let fault = found.fault.map(|fault| {
            let (kind, seq) = match fault {
                Fault::Gap { seq } => (AuditFaultKind::Gap, seq),
                Fault::Edited { seq } => (AuditFaultKind::Edited, seq),
                Fault::PastHead { seq } => (AuditFaultKind::PastHead, seq),
                Fault::Head { seq } => (AuditFaultKind::Head, seq),
                Fault::Checkpoint { seq } => (AuditFaultKind::Checkpoint, seq),
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

impl Example for AuditVerification {
    fn example() -> Self {
        Self {
            ok: true,
            checked: 42,
            checkpoint: checkpoint_text(&Checkpoint {
                seq: 42,
                mac: [0xa5; 32],
            }),
            fault: None,
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
        $name:ident: $path:tt, $operation:tt, $tag:tt, $who:ident => $read:ident
    ) => {
        pub(crate) struct $name {
            pub(crate) app: Arc<App>,
        }

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
                context: &RequestContext,
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
                /// Page size.
                #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
                limit: Query<Option<u64>>,
                /// Cursor: the `next_cursor` of the previous page.
                #[oai(validator(max_length = 200))]
                cursor: Query<Option<String>>,
            ) -> Result<Listed<AuditEntry>, ApiError> {
                let filter = AuditFilter {
                    action: action.0.map(|name| name.0),
                    actor: actor.0,
                    target: target.0,
                    since: since.0.map(|at| at.0),
                    until: until.0.map(|at| at.0),
                };
                $read(&self.app, &who, context, &filter, (limit.0, cursor.0)).await
            }
        }
    };
}

listing! {
    /// List the publisher's audit log
    ///
    /// Every change of configuration, credentials and access, and refusals of the own tokens
    /// (one a minute for each token and reason). Newest first.
    OwnLog: "/publishers/me/audit", "list_audit", "Tag::Audit", Admin => own_log
}

listing! {
    /// List the operator's audit log
    ///
    /// What the operator did, newest first. What it did to a publisher stands in the publisher's
    /// log too.
    OperatorLog: "/audit", "list_operator_audit", "Tag::Operator", Operator => operator_log
}

type Part = (Option<u64>, Option<String>);

async fn own_log(
    app: &App,
    who: &Admin,
    context: &RequestContext,
    filter: &AuditFilter,
    (limit, cursor): Part,
) -> Result<Listed<AuditEntry>, ApiError> {
    let scope = &who.0.scope;
    let list = List::begin(app, context, Some(scope), limit, cursor).await?;
    let page = app.store.scoped(scope).audit(filter, list.page()?).await?;
    Ok(list.answer(page, Into::into))
}

async fn operator_log(
    app: &App,
    _who: &Operator,
    context: &RequestContext,
    filter: &AuditFilter,
    (limit, cursor): Part,
) -> Result<Listed<AuditEntry>, ApiError> {
    let list = List::begin(app, context, None, limit, cursor).await?;
    let page = app.store.system().audit(filter, list.page()?).await?;
    Ok(list.answer(page, Into::into))
}

/// A publisher's log as a whole.
pub(crate) struct Audit {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Audit")]
impl Audit {
    /// Export the publisher's audit log
    ///
    /// All of it, oldest first, one JSON object a line. The stream ends early when the token that
    /// asked is revoked; compare the last `seq` with the log's.
    #[oai(
        path = "/publishers/me/audit/export",
        method = "get",
        operation_id = "export_audit"
    )]
    async fn export(&self, who: Admin) -> Result<Export, ApiError> {
        let scoped = self.app.store.scoped(&who.0.scope);
        let first = scoped.audit_after(0).await?;
        let (lines, receiver) = mpsc::channel(EXPORT_AHEAD);
        let (app, hash) = (Arc::clone(&self.app), who.1);
        // Reads go on in a task of their own: a caller that goes away must not cancel one.
        self.app.tasks.spawn(async move {
            let mut rows = first;
            while let Some(last) = rows.last().map(|row| row.seq) {
                if lines.send(ndjson(rows)).await.is_err() {
                    return;
                }
                if still_good(&app, hash, Some(CredentialKind::Admin))
                    .await
                    .is_err()
                {
                    return;
                }
                rows = match scoped.audit_after(last).await {
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
    #[oai(
        path = "/publishers/me/audit/verify",
        method = "get",
        operation_id = "verify_audit"
    )]
    async fn verify(
        &self,
        who: Admin,
        /// `checkpoint` of an earlier check.
        #[oai(validator(max_length = 100))]
        checkpoint: Query<Option<String>>,
    ) -> Result<Ok<AuditVerification>, ApiError> {
        let point = checkpoint.0.as_deref().map(parse_checkpoint).transpose()?;
        let scoped = self.app.store.scoped(&who.0.scope);
        let found = scoped.verify_audit(point.as_ref()).await?;
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
