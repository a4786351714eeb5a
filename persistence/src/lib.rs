//! The store: one set of functions over SQLite and PostgreSQL.
//!
//! A tenant's rows are reachable only through [`Store::scoped`], whose [`Scope`] only this crate
//! can make. [`Store::system`] sees everything; operator routes, the dispatcher, jobs and the
//! process's own commands may call it, and a test looks for others. Rows never leave this crate:
//! callers get domain types.

mod account_authorizations;
mod accounts;
mod audit;
mod auth;
mod credential_changes;
mod credentials;
mod deliveries;
mod delivery_rows;
mod dispatch;
mod endpoint_rows;
mod endpoint_secrets;
mod endpoints;
mod event_types;
mod events;
mod fan_outs;
mod feed;
#[cfg(test)]
mod fixture;
mod health;
mod import;
mod jobs;
mod lane;
mod lending;
mod listeners;
mod notices;
mod open;
mod own_events;
mod pipelines;
mod publish;
mod publishers;
mod recount;
mod refresh;
mod replays;
mod rewrap;
mod runs;
mod seed;
mod store;
mod subcommands;
mod sweeps;
mod train_tokens;
mod trains;
mod versions;

pub use account_authorizations::{AccountAuthorization, AuthorizationSecrets};
pub use accounts::{Account, AccountHealth, AccountPatch, NewAccount, OauthClient};
pub use audit::{AuditFilter, Checkpoint, Fault, Verification};
pub use auth::{Known, Principal};
pub use credentials::{Credential, Minted, NewCredential, Replaced};
pub use deliveries::{Attempt, Delivery, DeliveryFilter};
pub use dispatch::{
    Ask, Handover, Lease, Next, Outcome, PROCESS_EXPIRES_AFTER, Page as DuePage, ProcessId,
    Renewed, Target, Verdict, Waiting,
};
pub use endpoint_secrets::{EndpointSecret, MintedEndpointSecret, PublicKey};
pub use endpoints::{Endpoint, EndpointPatch, NewEndpoint, Sending};
pub use event_types::{EventTypePut, PublishersType, TypeSchema};
pub use events::Event;
pub use feed::{Feed, Place};
pub use health::{BUCKET_MS, Bucket, Health, Settled};
pub use import::{AccountWish, ClientKeyWish, Done, Import, Outcome as ImportOutcome, TrainWish};
pub use jobs::JobRow;
pub use lane::Patience;
pub use lending::{Exhausted, Lent, LentBy, Wish, reports::Report};
pub use notices::{DueNotice, LastNotice, NoticeOutcome, Notices};
pub use open::{OpenError, Options, SchemaState, migrate, schema_state, try_connections};
pub use own_events::{NewOwnEvent, PublishedEvent};
pub use pipelines::Pipeline;
pub use publishers::{
    CreatedPublisher, NewPublisher, Publisher, PublisherPatch, PublisherStatus, QuotasPatch, Usage,
};
pub use refresh::{AccountToken, DueRefresh, RefreshLease, Refreshable, Turn, Want};
pub use replays::{NewReplay, Replay, Worked};
pub use rewrap::{KeysSurvey, RewrapPlace, Rewrapped, survey_keys};
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
pub use subcommands::{CallRecord, SubcommandCall};
pub use sweeps::Removed;
pub use train_tokens::{MintedTrainToken, NewTrainToken, TrainToken};
pub use trains::{NewSlack, NewTrain, Slack, SlackPatch, Train, TrainAccount, TrainPatch};
