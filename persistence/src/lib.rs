//! The store: one set of functions over SQLite and PostgreSQL.
//!
//! A tenant's rows are reachable only through [`Store::scoped`], whose [`Scope`] only this crate
//! can make. [`Store::system`] sees everything; operator routes, the dispatcher, jobs and the
//! process's own commands may call it, and a test looks for others. Rows never leave this crate:
//! callers get domain types.

#[cfg(test)]
mod fixture;
mod operations;
mod publishers;
mod runs;
mod store;
mod trains;
mod webhooks;

pub use operations::audit::{AuditFilter, Checkpoint, Fault, Verification};
pub use operations::jobs::JobRow;
pub use operations::open::{
    OpenError, Options, SchemaState, migrate, schema_state, try_connections,
};
pub use operations::rewrap::{KeysSurvey, RewrapPlace, Rewrapped, survey_keys};
pub use operations::sweeps::Removed;
pub use publishers::auth::{Known, Principal};
pub use publishers::credentials::{Credential, Minted, NewCredential, Replaced};
pub use publishers::publisher::{
    CreatedPublisher, NewPublisher, Publisher, PublisherPatch, PublisherStatus, QuotasPatch, Usage,
};
pub use runs::lane::Patience;
pub use runs::pipelines::Pipeline;
pub use runs::subcommands::{CallRecord, SubcommandCall};
pub use runs::{
    BulkCancelled, Claimed, CreatedRun, Judged, NewRun, Run, RunFilter, timeline::TimelineEntry,
};
pub use store::change::{Answer, Context, Expected, IdempotencyKey};
pub use store::effects::{DueDelivery, EndpointKey, HandedOver};
pub use store::ends::Retention;
pub use store::error::{KeptVersion, StoreError};
pub use store::job::Job;
pub use store::keys::{ClosedKeys, KeySource};
pub use store::lines::OWN as OWN_CONNECTIONS;
pub use store::page::{Page, PageRequest};
pub use store::scope::Scope;
pub use store::wake::Written;
pub use store::{HEARTBEAT, Scoped, Store, System};
pub use trains::account_authorizations::{AccountAuthorization, AuthorizationSecrets};
pub use trains::accounts::{Account, AccountHealth, AccountPatch, NewAccount, OauthClient};
pub use trains::import::{
    AccountWish, ClientKeyWish, Done, Import, Outcome as ImportOutcome, TrainWish,
};
pub use trains::lending::{Exhausted, Lent, LentBy, Wish, reports::Report};
pub use trains::notices::{DueNotice, LastNotice, NoticeOutcome, Notices};
pub use trains::refresh::{AccountToken, DueRefresh, RefreshLease, Refreshable, Turn, Want};
pub use trains::train::{NewSlack, NewTrain, Slack, SlackPatch, Train, TrainAccount, TrainPatch};
pub use trains::train_tokens::{MintedTrainToken, NewTrainToken, TrainToken};
pub use webhooks::deliveries::{Attempt, Delivery, DeliveryFilter};
pub use webhooks::dispatch::{
    Ask, Handover, Lease, Next, Outcome, PROCESS_EXPIRES_AFTER, Page as DuePage, ProcessId,
    Renewed, Target, Verdict, Waiting,
};
pub use webhooks::endpoint_secrets::{EndpointSecret, MintedEndpointSecret, PublicKey};
pub use webhooks::endpoints::{Endpoint, EndpointPatch, NewEndpoint, Sending};
pub use webhooks::event_types::{EventTypePut, PublishersType, TypeSchema};
pub use webhooks::events::Event;
pub use webhooks::feed::{Feed, Place};
pub use webhooks::health::{BUCKET_MS, Bucket, Health, Settled};
pub use webhooks::own_events::{NewOwnEvent, PublishedEvent};
pub use webhooks::replays::{NewReplay, Replay, Worked};
