//! The store: one set of functions over SQLite and PostgreSQL.
//!
//! A tenant's rows are reachable only through [`Store::scoped`], whose [`Scope`] only this crate
//! can make. [`Store::system`] reaches the rows of all tenants. Only operator routes, the
//! dispatcher, jobs and the process's own commands may call it; a test lists the callers. Database
//! rows never leave this crate: callers get domain types.
//!
//! The module `store` is the base: engines, transactions, keys, tables, lists and administrative
//! changes. It imports none of the planes: `trains`, `publishers`, `webhooks` and `runs`. It holds
//! what a plane keeps in memory as a `PlaneState`. `operations` is above all planes and opens the
//! store. People, who belong to no publisher, have the plane `identity` and the handle
//! [`Store::identity`]. No file is part of a circle of imports.

#[cfg(test)]
mod fixture;
mod identity;
mod operations;
mod publishers;
mod runs;
mod store;
mod trains;
mod webhooks;

pub use identity::{
    Identity,
    mails::{DueMail, Mails, NewMail},
    passkeys::{NewPasskey, Passkey},
    providers::ProviderIdentity,
    sessions::{NewSession, Session, SignedIn},
    sign_in::{Given, Proof, ProviderOutcome, ProviderSubject, Refusal, SignIn},
    throttles::Growth,
    tokens::{NewToken, Token, TokenFault},
    users::{NewUser, User},
};
pub use operations::{
    Operations,
    audit::{AuditFilter, ChainFault, Checkpoint, Verification},
    jobs::JobRow,
    open::{OpenError, SchemaState, StoreOptions, migrate, schema_state, try_connections},
    rewrap::{KeysSurvey, RewrapCursor, Rewrapped, survey_keys},
    sweeps::SweepResult,
};
pub use publishers::{
    Credentials, Members, Publishers,
    auth::{CachedToken, Holder, Member, Principal},
    credentials::{Credential, Minted, NewCredential, Replaced},
    invitations::{
        Accepted, INVITATION_LASTS, Invitation, InvitationStatus, NewInvitation, OwnInvitation,
    },
    members::{Membership, MintedToken, OwnMembership, RemovedMember},
    publisher::{
        CreatedPublisher, NewPublisher, Publisher, PublisherPatch, PublisherStatus, QuotasPatch,
        Usage,
    },
    standing::Presented,
};
pub use runs::{
    BulkCancelled, RunFilter, Runs,
    changes::ValidatedInput,
    lane::WaitOptions,
    pipelines::Pipeline,
    run::{Claimed, CreatedRun, NewRun, Run},
    subcommands::{CallRecord, SubcommandCall},
    timeline::TimelineEntry,
};
pub use store::{
    HEARTBEAT, Scoped, Store, System,
    change::{Answer, Context, Expected, IdempotencyKey},
    effects::{DueDelivery, EndpointKey, HandedOver},
    ends::Retention,
    error::{PipelineVersion, StoreError},
    job::Job,
    keys::{ClosedKeys, KeySource},
    lines::OWN as OWN_CONNECTIONS,
    page::{Page, PageRequest},
    scope::Scope,
    wake::Written,
};
pub use trains::{
    Trains,
    account_authorizations::{AccountAuthorization, AuthorizationSecrets},
    accounts::{Account, AccountHealth, AccountPatch, NewAccount, OauthClient},
    import::{AccountSpec, ClientKeySpec, Import, ImportOutcome, ImportResult, TrainSpec},
    lending::{
        AccountCriteria, CredentialPool, Exhausted, ResolvedAccount, Upstream, Upstreams,
        reports::AccountReport,
        shown::{AccountCooldown, Reporter},
    },
    notices::{DueNotice, LastNotice, NoticeOutcome, Notices},
    refresh::{AccountToken, DueRefresh, RefreshClaim, RefreshLease, RefreshRequest, Refreshable},
    train::{NewSlack, NewTrain, Slack, SlackPatch, Train, TrainAccount, TrainPatch},
    train_tokens::{MintedTrainToken, NewTrainToken, TrainToken},
};
pub use webhooks::{
    Webhooks,
    deliveries::{Attempt, Delivery, DeliveryFilter},
    dispatch::{
        AttemptOutcome, DeliveryTarget, DuePage, DueRequest, Handover, Lease, Next,
        PROCESS_EXPIRES_AFTER, ProcessId, RecordResult, Renewed, WaitingEndpoint,
    },
    enabling::Enabled,
    endpoint_secrets::{EndpointSecret, MintedEndpointSecret, PublicKey},
    endpoints::{Endpoint, EndpointPatch, NewEndpoint, Sending},
    event_types::{EventTypePut, PublishersType, TypeSchema},
    events::Event,
    feed::{Feed, FeedCursor},
    health::{BUCKET_MS, Health, HealthActions, StatsBucket},
    own_events::{NewOwnEvent, PublishedEvent},
    replays::{NewReplay, Replay, ReplayRound},
};
