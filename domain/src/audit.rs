//! The audit vocabulary, and the keyed chain that makes a log tamper-evident.

use uuid::Uuid;

use crate::{clock::Timestamp, seal::Key};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every one of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in answers and the store.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The one that a word names.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words! {
    /// What was done: a closed list.
    Action {
        /// A publisher was made.
        PublisherCreated = "publisher.created",
        /// Its display name changed.
        PublisherUpdated = "publisher.updated",
        /// Its tokens stopped working, its deliveries paused.
        PublisherSuspended = "publisher.suspended",
        /// The opposite, or a deletion undone.
        PublisherResumed = "publisher.resumed",
        /// It was marked for removal.
        PublisherDeleted = "publisher.deleted",
        /// The operator changed its quotas.
        PublisherQuotaSet = "publisher.quota_set",
        /// A token was made.
        TokenMinted = "token.minted",
        /// Live tokens were replaced by a new one.
        TokenRotated = "token.rotated",
        /// A token, or one right of it, was taken away.
        TokenRevoked = "token.revoked",
        /// A tenant's own token was refused something.
        TokenDenied = "token.denied",
        /// A secret was made.
        SecretMinted = "secret.minted",
        /// Live secrets were replaced by a new one.
        SecretRotated = "secret.rotated",
        /// A secret was taken away.
        SecretRevoked = "secret.revoked",
        /// A pipeline was registered.
        PipelineCreated = "pipeline.created",
        /// A pipeline has a new version.
        PipelineUpdated = "pipeline.updated",
        /// A pipeline hands out no runs for now.
        PipelinePaused = "pipeline.paused",
        /// A pipeline hands out runs again.
        PipelineResumed = "pipeline.resumed",
        /// Runs were cancelled by filter.
        RunsCancelled = "runs.cancelled",
        /// A pipeline was removed.
        PipelineDeleted = "pipeline.deleted",
        /// A type of events was described.
        EventTypeCreated = "event_type.created",
        /// What is said of a type of events changed.
        EventTypeUpdated = "event_type.updated",
        /// Nothing is said of a type of events any more.
        EventTypeDeleted = "event_type.deleted",
        /// An endpoint was made.
        EndpointCreated = "endpoint.created",
        /// An endpoint changed.
        EndpointUpdated = "endpoint.updated",
        /// Deliveries to it flow again.
        EndpointEnabled = "endpoint.enabled",
        /// Deliveries to it stopped.
        EndpointDisabled = "endpoint.disabled",
        /// An endpoint was removed.
        EndpointDeleted = "endpoint.deleted",
        /// Everything since a time is sent to an endpoint again.
        ReplayStarted = "replay.started",
        /// It is not, any more.
        ReplayCancelled = "replay.cancelled",
        /// A finished delivery was started again.
        DeliveryRetried = "delivery.retried",
        /// A train was made.
        TrainCreated = "train.created",
        /// A train changed.
        TrainUpdated = "train.updated",
        /// A train was removed, with its mapping and tokens.
        TrainDeleted = "train.deleted",
        /// The accounts that a train lends were set.
        TrainAccountsSet = "train.accounts_set",
        /// A train's token was made.
        TrainTokenMinted = "train_token.minted",
        /// A train's token was taken away.
        TrainTokenRevoked = "train_token.revoked",
        /// An upstream credential was stored.
        AccountCreated = "account.created",
        /// Its name or settings changed.
        AccountUpdated = "account.updated",
        /// Another account took over all of its places.
        AccountReplaced = "account.replaced",
        /// An upstream credential was removed.
        AccountDeleted = "account.deleted",
        /// An admin ended its cooldowns, or that for one model.
        AccountCooldownEnded = "account.cooldown_ended",
        /// Its tokens were refreshed.
        AccountRefreshed = "account.refreshed",
        /// Its tokens can't be refreshed any more.
        AccountRefreshFailed = "account.refresh_failed",
        /// A bootstrap token was used (at most one row a minute for each).
        BootstrapUsed = "bootstrap.used",
        /// Owners' keys were wrapped by another master key.
        KeysRewrapped = "keys.rewrapped",
        /// Rows that the service did not write stood behind the log's end, and were removed.
        AuditTampered = "audit.tampered",
        /// The boot seed changed something.
        SeedApplied = "seed.applied",
    }
}

words! {
    /// Who acted.
    ActorKind {
        /// The operator, by a bootstrap token.
        Bootstrap = "bootstrap",
        /// A publisher's admin token.
        Admin = "admin",
        /// A publisher's runner token.
        Runner = "runner",
        /// A train's token.
        Train = "train",
        /// The service itself.
        System = "system",
    }
}

/// Who acts: the kind and identifier of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// What kind of credential.
    pub kind: ActorKind,
    /// Which one (`tok_…`, a fingerprint of a bootstrap token, or a part of the service).
    pub id: String,
}

impl Actor {
    /// A part of the service itself.
    #[must_use]
    pub fn system(part: &str) -> Self {
        Self {
            kind: ActorKind::System,
            id: part.to_owned(),
        }
    }
}

/// One row of the log, as it is chained. Every field is covered by the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// The publisher whose log it is, nil for the operator's.
    pub owner: Uuid,
    /// Counts from 1 without gaps.
    pub seq: i64,
    /// The row's identifier.
    pub id: Uuid,
    /// When.
    pub at: Timestamp,
    /// The actor's kind.
    pub actor_kind: String,
    /// The actor.
    pub actor_id: String,
    /// What was done.
    pub action: String,
    /// To which kind of thing.
    pub target_kind: String,
    /// To which thing.
    pub target_id: String,
    /// The request that did it.
    pub request_id: Option<String>,
    /// The caller's address.
    pub address: Option<String>,
    /// The caller's program.
    pub user_agent: Option<String>,
    /// Further facts as canonical JSON text; never a credential.
    pub metadata: String,
}

impl AuditRow {
    /// The row's code: HMAC-SHA256 over the previous row's code and every field, each part
    /// prefixed by its length.
    #[must_use]
    pub fn mac(&self, key: &Key, previous: &[u8; 32]) -> [u8; 32] {
        fn optional(value: Option<&str>) -> Vec<u8> {
            // Absent and empty differ.
            value.map_or_else(|| vec![0], |text| [&[1], text.as_bytes()].concat())
        }
        key.mac(&[
            b"stationmaster.audit.v1",
            previous,
            self.owner.as_bytes(),
            &self.seq.to_be_bytes(),
            self.id.as_bytes(),
            &self.at.ms().to_be_bytes(),
            self.actor_kind.as_bytes(),
            self.actor_id.as_bytes(),
            self.action.as_bytes(),
            self.target_kind.as_bytes(),
            self.target_id.as_bytes(),
            &optional(self.request_id.as_deref()),
            &optional(self.address.as_deref()),
            &optional(self.user_agent.as_deref()),
            self.metadata.as_bytes(),
        ])
    }
}

/// What stands before the first row.
pub const GENESIS: [u8; 32] = [0; 32];

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> AuditRow {
        AuditRow {
            owner: Uuid::from_u128(1),
            seq: 1,
            id: Uuid::from_u128(2),
            at: Timestamp::from_ms(3),
            actor_kind: "admin".into(),
            actor_id: "tok_x".into(),
            action: "token.minted".into(),
            target_kind: "token".into(),
            target_id: "tok_y".into(),
            request_id: None,
            address: None,
            user_agent: Some(String::new()),
            metadata: "{}".into(),
        }
    }

    #[test]
    fn every_field_counts() {
        let key = Key::generate();
        let code = row().mac(&key, &GENESIS);
        let changes: Vec<fn(&mut AuditRow)> = vec![
            |r| r.owner = Uuid::from_u128(9),
            |r| r.seq = 2,
            |r| r.id = Uuid::from_u128(9),
            |r| r.at = Timestamp::from_ms(9),
            |r| r.actor_kind = "runner".into(),
            |r| r.actor_id = "tok_z".into(),
            |r| r.action = "token.revoked".into(),
            |r| r.target_kind = "tokent".into(),
            |r| r.target_id = "ok_y".into(),
            |r| r.request_id = Some(String::new()),
            |r| r.address = Some("::1".into()),
            |r| r.user_agent = None,
            |r| r.metadata = "{ }".into(),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut other = row();
            change(&mut other);
            assert_ne!(other.mac(&key, &GENESIS), code, "change {at}");
        }
        assert_ne!(row().mac(&key, &[1; 32]), code);
        assert_ne!(row().mac(&Key::generate(), &GENESIS), code);
    }

    #[test]
    fn words_parse_back() {
        for action in Action::ALL {
            assert_eq!(Action::parse(action.as_str()), Some(*action));
        }
    }
}
