//! Limits. Everything that can grow has one.

use serde::{Deserialize, Serialize};

/// Largest request body, bytes.
pub const BODY_BYTES: usize = 1024 * 1024;
/// Deepest nesting of a JSON body.
pub const JSON_DEPTH: usize = 32;
/// Most values of a JSON body, not counting the parts that are kept as text. Parsed into a tree, an
/// object with one member takes a hundred times the memory of its text.
pub const BODY_VALUES: usize = 20_000;
/// Most values of a run's input or output, or of an event's data, if it is validated by a JSON
/// Schema: only then is it parsed into a tree.
pub const PAYLOAD_VALUES: usize = 50_000;
/// Largest run input, run output or event data, bytes of JSON.
pub const PAYLOAD_BYTES: usize = 256 * 1024;
/// Largest page, bytes of the texts in its rows. A larger row is a page by itself. Also the most
/// that one claim hands out.
pub const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Rows of a page if the request names no number.
pub const PAGE_DEFAULT: u64 = 50;
/// Most rows of a page.
pub const PAGE_MAX: u64 = 200;
/// Longest display name, characters.
pub const NAME_CHARS: usize = 120;
/// Longest description, characters.
pub const DESCRIPTION_CHARS: usize = 1000;
/// Longest external identifier, characters.
pub const EXTERNAL_ID_CHARS: usize = 200;
/// Longest URL, characters.
pub const URL_CHARS: usize = 2048;
/// Most event-type filters, and most pipeline filters, of an endpoint.
pub const FILTERS: usize = 50;
/// Most custom headers of an endpoint.
pub const HEADERS: usize = 20;
/// Most subcommands of a pipeline.
pub const SUBCOMMANDS: usize = 50;
/// Largest answer of a subcommand that is passed on, bytes.
pub const SUBCOMMAND_ANSWER_BYTES: usize = 1024 * 1024;
/// Most subcommand calls of one publisher under way in a process.
pub const SUBCOMMAND_CALLS: usize = 64;
/// Most subcommand calls under way in a process. Each holds a request, and at most two bodies.
pub const SUBCOMMAND_CALLS_IN_ALL: usize = 256;
/// Most pipelines that a token may be limited to.
pub const TOKEN_PIPELINES: usize = 50;
/// Longest overlap of a rotation, seconds: 7 days.
pub const OVERLAP_SECONDS: u32 = 7 * 24 * 3600;
/// Most runs that one claim hands out.
pub const CLAIM_MAX: u32 = 100;
/// Most claims of a publisher that wait for runs at once, in each process.
pub const WAITING_CLAIMS: usize = 1000;
/// Longest wait of a claim for a run, seconds.
pub const CLAIM_WAIT_SECONDS: u32 = 60;
/// Largest report of progress, bytes of JSON.
pub const PROGRESS_BYTES: usize = 16 * 1024;
/// Most runs that one bulk cancellation changes.
pub const BULK_CANCEL: u64 = 1000;
/// Largest body of a request that publishes events, bytes.
pub const PUBLISH_BYTES: usize = 4 * 1024 * 1024;
/// Most events that one request publishes.
pub const PUBLISH_EVENTS: usize = 1000;
/// Most event types that a publisher describes.
pub const EVENT_TYPES: u64 = 200;
/// Largest example of an event's data, bytes of JSON.
pub const EXAMPLE_BYTES: usize = 8 * 1024;
/// Most deliveries of an endpoint's replays that wait at a time.
pub const REPLAY_PENDING: i64 = 500;
/// Most replays of an endpoint that run at a time.
pub const REPLAYS_RUNNING: usize = 5;
/// Most live secrets of one endpoint.
pub const ENDPOINT_SECRETS: usize = 10;
/// Most logins at upstreams that one publisher has begun and not finished.
pub const OAUTH_LOGINS: u32 = 20;
/// Longest credential that an account holds, characters.
pub const CREDENTIAL_CHARS: usize = 8192;
/// Most scopes of an `oauth` account.
pub const SCOPES: usize = 50;
/// Most accounts of a train.
pub const TRAIN_ACCOUNTS: usize = 100;
/// The last priority of an account in a train; 0 is the first.
pub const TRAIN_PRIORITY_MAX: u16 = 999;
/// Longest Idempotency-Key, characters.
pub const IDEMPOTENCY_KEY_CHARS: usize = 200;
/// How long a stored answer is replayed, hours.
pub const IDEMPOTENCY_HOURS: u64 = 24;
/// How long a stored answer that holds a credential is replayed, minutes.
pub const IDEMPOTENCY_SECRET_MINUTES: u64 = 10;
/// How long a deleted publisher can come back, days.
pub const UNDELETE_DAYS: u64 = 7;
/// How much of a consumer's answer is kept with an attempt, bytes.
pub const EXCERPT_BYTES: usize = 1024;

/// How much one publisher may have. The operator sets exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Live credentials of each of the four kinds.
    pub credentials_per_kind: u32,
    /// Pipelines.
    pub pipelines: u32,
    /// Webhook endpoints.
    pub webhook_endpoints: u32,
    /// Upstream accounts.
    pub accounts: u32,
    /// Trains.
    pub trains: u32,
    /// Live tokens of all trains.
    pub train_tokens: u32,
    /// Live tokens of one train.
    pub train_tokens_per_train: u32,
    /// Bytes of stored events, runs, deliveries and answers. Not written if it is the default,
    /// because older versions of the program refuse to read unknown members.
    #[serde(skip_serializing_if = "is_usual_storage")]
    pub storage_bytes: u64,
}

/// Bytes that a publisher may store, unless the operator says otherwise: 10 GiB. Some thirty
/// million small events, or a hundred a minute of 2 KiB kept for a month.
pub const STORAGE_BYTES: u64 = 10 * 1024 * 1024 * 1024;

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the shape that serde takes"
)]
const fn is_usual_storage(bytes: &u64) -> bool {
    *bytes == STORAGE_BYTES
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            credentials_per_kind: 50,
            pipelines: 1000,
            webhook_endpoints: 100,
            accounts: 100,
            trains: 100,
            train_tokens: 50,
            train_tokens_per_train: 10,
            storage_bytes: STORAGE_BYTES,
        }
    }
}
