//! The vocabulary of the audit logs, and the keyed chain that makes them tamper-evident.

use uuid::Uuid;

use crate::{clock::Timestamp, seal::Key};

use crate::words;

words! {
    /// The action of an entry. The list is closed.
    pub enum Action {
        /// A publisher was created.
        PublisherCreated = "publisher.created",
        /// A publisher's display name changed.
        PublisherUpdated = "publisher.updated",
        /// A publisher was suspended: its tokens stopped working, and its deliveries paused.
        PublisherSuspended = "publisher.suspended",
        /// A suspension or a deletion was undone.
        PublisherResumed = "publisher.resumed",
        /// A publisher was marked for removal.
        PublisherDeleted = "publisher.deleted",
        /// The operator changed a publisher's quotas.
        PublisherQuotaSet = "publisher.quota_set",
        /// A token was created.
        TokenMinted = "token.minted",
        /// Live tokens were replaced by a new one.
        TokenRotated = "token.rotated",
        /// A token, or one of its rights, was revoked.
        TokenRevoked = "token.revoked",
        /// A request with a publisher's token was refused.
        TokenDenied = "token.denied",
        /// A secret was created.
        SecretMinted = "secret.minted",
        /// Live secrets were replaced by a new one.
        SecretRotated = "secret.rotated",
        /// A secret was revoked.
        SecretRevoked = "secret.revoked",
        /// A pipeline was registered.
        PipelineCreated = "pipeline.created",
        /// A pipeline got a new version.
        PipelineUpdated = "pipeline.updated",
        /// A pipeline was paused.
        PipelinePaused = "pipeline.paused",
        /// A pipeline was resumed.
        PipelineResumed = "pipeline.resumed",
        /// Runs were cancelled by filter.
        RunsCancelled = "runs.cancelled",
        /// A pipeline was removed.
        PipelineDeleted = "pipeline.deleted",
        /// An event type was described.
        EventTypeCreated = "event_type.created",
        /// The description of an event type changed.
        EventTypeUpdated = "event_type.updated",
        /// The description of an event type was removed.
        EventTypeDeleted = "event_type.deleted",
        /// An endpoint was created.
        EndpointCreated = "endpoint.created",
        /// An endpoint changed.
        EndpointUpdated = "endpoint.updated",
        /// An endpoint was enabled.
        EndpointEnabled = "endpoint.enabled",
        /// An endpoint was disabled.
        EndpointDisabled = "endpoint.disabled",
        /// An endpoint was removed.
        EndpointDeleted = "endpoint.deleted",
        /// A replay of events to an endpoint was started.
        ReplayStarted = "replay.started",
        /// A replay was cancelled.
        ReplayCancelled = "replay.cancelled",
        /// A finished delivery was retried.
        DeliveryRetried = "delivery.retried",
        /// A train was created.
        TrainCreated = "train.created",
        /// A train changed.
        TrainUpdated = "train.updated",
        /// A train was removed, with its mapping and tokens.
        TrainDeleted = "train.deleted",
        /// The accounts that a train lends were set.
        TrainAccountsSet = "train.accounts_set",
        /// A train's token was created.
        TrainTokenMinted = "train_token.minted",
        /// A train's token was revoked.
        TrainTokenRevoked = "train_token.revoked",
        /// An upstream credential was stored.
        AccountCreated = "account.created",
        /// An account's name or settings changed.
        AccountUpdated = "account.updated",
        /// An account was replaced by another one in all trains.
        AccountReplaced = "account.replaced",
        /// An upstream credential was removed.
        AccountDeleted = "account.deleted",
        /// An admin ended an account's cooldowns, or the one for a model.
        AccountCooldownEnded = "account.cooldown_ended",
        /// An account's tokens were refreshed.
        AccountRefreshed = "account.refreshed",
        /// An account's tokens can't be refreshed any more.
        AccountRefreshFailed = "account.refresh_failed",
        /// A bootstrap token was used (at most one row a minute for each).
        BootstrapUsed = "bootstrap.used",
        /// Data keys were wrapped by another master key.
        KeysRewrapped = "keys.rewrapped",
        /// Rows behind the log's end that the service did not write were removed.
        AuditTampered = "audit.tampered",
        /// The legacy token of the configuration was stored or changed.
        SeedApplied = "seed.applied",
        /// A user was created.
        UserCreated = "user.created",
        /// A user's name or rights changed.
        UserUpdated = "user.updated",
        /// A user was disabled: no sign-in works, and all sessions ended.
        UserDisabled = "user.disabled",
        /// A disabled user was enabled again.
        UserEnabled = "user.enabled",
        /// A user was deleted.
        UserDeleted = "user.deleted",
        /// A user's address changed.
        UserAddressChanged = "user.address_changed",
        /// A mail with a link or a code was asked for.
        SignInRequested = "sign_in.requested",
        /// Somebody signed in.
        SignInSucceeded = "sign_in.succeeded",
        /// An attempt to sign in failed.
        SignInFailed = "sign_in.failed",
        /// A session was ended.
        SessionEnded = "session.ended",
        /// All sessions of a user were ended.
        SessionsEnded = "sessions.ended",
        /// A password was set or changed.
        PasswordChanged = "password.changed",
        /// A password was removed.
        PasswordRemoved = "password.removed",
        /// A link for a new password was asked for.
        PasswordResetRequested = "password.reset_requested",
        /// A passkey was added.
        PasskeyAdded = "passkey.added",
        /// A passkey's name changed.
        PasskeyUpdated = "passkey.updated",
        /// A passkey was removed.
        PasskeyRemoved = "passkey.removed",
        /// A sign-in elsewhere was connected with a user.
        IdentityLinked = "identity.linked",
        /// A sign-in elsewhere was disconnected from a user.
        IdentityUnlinked = "identity.unlinked",
        /// A member joined a publisher.
        MemberAdded = "member.added",
        /// A member's role changed.
        MemberUpdated = "member.updated",
        /// A member was removed, or left.
        MemberRemoved = "member.removed",
        /// A membership was offered.
        InvitationCreated = "invitation.created",
        /// An invitation was mailed again.
        InvitationResent = "invitation.resent",
        /// An invitation was accepted.
        InvitationAccepted = "invitation.accepted",
        /// An invitation was withdrawn.
        InvitationRevoked = "invitation.revoked",
    }
}

words! {
    /// Who acted.
    pub enum ActorKind {
        /// The operator, with a bootstrap token.
        Bootstrap = "bootstrap",
        /// A publisher's admin token.
        Admin = "admin",
        /// A publisher's runner token.
        Runner = "runner",
        /// A train's token.
        Train = "train",
        /// A person who is signed in.
        User = "user",
        /// Somebody who is not signed in.
        Anonymous = "anonymous",
        /// The service itself.
        System = "system",
    }
}

/// Who acts: the kind and identifier of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The kind of credential.
    pub kind: ActorKind,
    /// The identifier (`tok_…`), a fingerprint of a bootstrap token, or the name of a part of the
    /// service.
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

impl Actor {
    /// A person who is signed in.
    #[must_use]
    pub fn user(user: crate::id::UserId) -> Self {
        Self {
            kind: ActorKind::User,
            id: user.to_string(),
        }
    }

    /// The person, if one is signed in.
    #[must_use]
    pub fn user_id(&self) -> Option<crate::id::UserId> {
        use crate::id::Id as _;
        (self.kind == ActorKind::User).then(|| crate::id::UserId::parse(&self.id))?
    }

    /// Somebody who is not signed in.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            kind: ActorKind::Anonymous,
            id: String::new(),
        }
    }
}

/// One row of a log. The code covers every field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// The publisher whose log it is; nil for the operator's log.
    pub owner: Uuid,
    /// The number of the row, from 1 without gaps.
    pub seq: i64,
    /// The row's identifier.
    pub id: Uuid,
    /// The time of the action.
    pub at: Timestamp,
    /// The actor's kind.
    pub actor_kind: String,
    /// The identifier of the actor.
    pub actor_id: String,
    /// The action.
    pub action: String,
    /// The kind of the resource that was changed.
    pub target_kind: String,
    /// The identifier of the resource that was changed.
    pub target_id: String,
    /// The identifier of the request.
    pub request_id: Option<String>,
    /// The caller's address.
    pub address: Option<String>,
    /// The caller's `User-Agent`.
    pub user_agent: Option<String>,
    /// Further facts as canonical JSON text; never a credential.
    pub metadata: String,
}

impl AuditRow {
    /// The row's code: HMAC-SHA256 over the code of the previous row and every field, each part
    /// prefixed by its length.
    #[must_use]
    pub fn mac(&self, key: &Key, previous: &[u8; 32]) -> [u8; 32] {
        fn optional(value: Option<&str>) -> Vec<u8> {
            // An absent value and an empty one differ.
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

/// The code before the first row.
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
            assert_eq!(Action::parse(action.as_str()), Some(action));
        }
    }
}
