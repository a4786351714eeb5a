//! Rows of people, and of members of publishers.

use std::time::Duration;

use crate::store::{
    ends::{Declared, End, RetentionPeriod, Table, WITH_PUBLISHER, key_of, swept},
    job::Job,
};

/// How long a session stays after it was last seen. The longest idle time that the operator can
/// set is shorter.
pub(crate) const IDLE_SESSIONS_KEPT: Duration = Duration::from_hours(25);

/// How long a single-use token stays after its end: until then, who uses it learns that it was used
/// or is too old.
pub(crate) const TOKENS_KEPT: Duration = Duration::from_hours(24);

/// How long an invitation stays after its end, for its publisher to read.
const INVITATIONS_KEPT: Duration = Duration::from_hours(30 * 24);

/// How long a throttle stays after its last change. The longest delay is shorter.
const THROTTLES_KEPT: Duration = Duration::from_hours(25);

entity!(users, "users", None, [End::By("the operator's command `users delete`")], {
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    display_name: Option<String>,
    staff: bool,
    revision: i64,
    created_at: i64,
    updated_at: i64,
    disabled_at: Option<i64>,
});

entity!(user_addresses, "user_addresses", None, [End::WithUser], {
    #[sea_orm(primary_key, auto_increment = false)]
    address: String,
    user_id: Uuid,
    is_primary: bool,
    verified_at: Option<i64>,
    created_at: i64,
});

entity!(user_identities, "user_identities", None, [End::WithUser], {
    #[sea_orm(primary_key, auto_increment = false)]
    provider: String,
    #[sea_orm(primary_key, auto_increment = false)]
    subject: String,
    user_id: Uuid,
    address: Option<String>,
    created_at: i64,
    last_used_at: i64,
});

entity!(user_passwords, "user_passwords", None, [End::WithUser], {
    #[sea_orm(primary_key, auto_increment = false)]
    user_id: Uuid,
    hash: String,
    changed_at: i64,
});

entity!(passkeys, "passkeys", None, [End::WithUser], {
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    user_id: Uuid,
    credential_id: Vec<u8>,
    public_key: Vec<u8>,
    sign_count: i64,
    backed_up: bool,
    name: String,
    created_at: i64,
    last_used_at: Option<i64>,
});

entity!(sessions, "sessions", None, [
    swept(Job::People, "sessions_removed", "expires_at", RetentionPeriod::Until),
    swept(Job::People, "sessions_removed", "last_seen_at", RetentionPeriod::For(IDLE_SESSIONS_KEPT)),
    End::WithUser,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    hash: Vec<u8>,
    user_id: Uuid,
    method: String,
    provider: Option<String>,
    authenticated_at: i64,
    created_at: i64,
    last_seen_at: i64,
    expires_at: i64,
    client_address: Option<String>,
    user_agent: Option<String>,
});

entity!(single_use_tokens, "single_use_tokens", None, [
    swept(Job::People, "tokens_removed", "expires_at", RetentionPeriod::For(TOKENS_KEPT)),
    End::WithUser,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    hash: Vec<u8>,
    purpose: String,
    user_id: Option<Uuid>,
    address: Option<String>,
    browser: Option<Vec<u8>>,
    code: Option<Vec<u8>>,
    code_attempts: i32,
    sealed: Option<Vec<u8>>,
    created_at: i64,
    expires_at: i64,
    used_at: Option<i64>,
    superseded_at: Option<i64>,
});

entity!(memberships, "memberships", Some("publisher_id"), [WITH_PUBLISHER, End::WithUser], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    user_id: Uuid,
    role: String,
    revision: i64,
    created_at: i64,
    updated_at: i64,
});

entity!(invitations, "invitations", Some("publisher_id"), [
    swept(Job::People, "invitations_removed", "expires_at", RetentionPeriod::For(INVITATIONS_KEPT)),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    address: String,
    role: String,
    hash: Vec<u8>,
    inviter_kind: String,
    inviter_id: String,
    created_at: i64,
    expires_at: i64,
    accepted_at: Option<i64>,
    accepted_by: Option<Uuid>,
    revoked_at: Option<i64>,
});

entity!(mails, "mails", None, [
    swept(Job::People, "mails_removed", "finished_at", RetentionPeriod::Notices),
], {
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    kind: String,
    sealed: Option<Vec<u8>>,
    attempts: i32,
    next_attempt_at: Option<i64>,
    last_error: Option<String>,
    created_at: i64,
    expires_at: i64,
    finished_at: Option<i64>,
});

entity!(sign_in_throttles, "sign_in_throttles", None, [
    swept(Job::People, "throttles_removed", "updated_at", RetentionPeriod::For(THROTTLES_KEPT)),
], {
    #[sea_orm(primary_key, auto_increment = false)]
    key: Vec<u8>,
    count: i32,
    updated_at: i64,
    blocked_until: i64,
});
