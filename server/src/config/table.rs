//! The table of settings. To add one, add a row; `stationmaster config --docs` and
//! `--env-example` write the two files that follow from it.

use super::{
    Secrecy::{Open, Secret, Url},
    Setting, SettingError, Values,
    forms::{
        Address, BootstrapTokens, Cron, DatabaseLocation, FilePath, Form, Keys, LegacyToken,
        LogFilter, LogLines, Maybe, Networks, OffOrOn, OpenOrClosed, Origin, Retries, Sender,
        SessionKey, SmtpServer, Switch, SynchronousFull, Whole,
    },
};

/// Reads one setting. The forms of secrets make sure that no error contains the text.
fn read<F: Form>(values: &Values, name: &str, faults: &mut Vec<SettingError>) -> Option<F::Value> {
    let setting = super::find(name)?;
    match F::read(values.text(setting)) {
        Ok(value) => Some(value),
        Err(wrong) => {
            faults.push(SettingError::new(
                name,
                format!("{wrong}; it takes {}", F::takes()),
            ));
            None
        }
    }
}

/// Defines the type [`Config`], the list [`SETTINGS`], and the function that reads the settings,
/// from rows `field: Form = "NAME", "default" ("its words"), secrecy, "meaning";`.
macro_rules! settings {
    ($( $section:literal { $(
        $field:ident: $form:ty = $name:literal, $default:literal ($words:literal), $secrecy:ident,
        $meaning:literal;
    )* } )*) => {
        /// The configuration, with checked values.
        #[derive(Clone, Debug)]
        pub struct Config {
            $($( #[doc = $meaning] pub $field: <$form as Form>::Value, )*)*
        }

        /// All settings, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[
            $($( Setting {
                name: $name,
                section: $section,
                default: $default,
                default_words: $words,
                secrecy: $secrecy,
                meaning: $meaning,
                takes: <$form as Form>::takes,
            }, )*)*
        ];

        /// Reads every setting; `None` if any has an error, which is added to `faults`.
        pub(super) fn build(values: &Values, faults: &mut Vec<SettingError>) -> Option<Config> {
            $($( let $field = read::<$form>(values, $name, faults); )*)*
            Some(Config { $($( $field: $field?, )*)* })
        }
    };
}

settings! {
    "Listening" {
        listen: Address = "STATIONMASTER_LISTEN", "127.0.0.1:8080" (""), Open,
            "The address of the API. With port 0 the system picks a free port, which the first line on standard output names.";
        max_connections: Whole<1, 1_000_000> = "STATIONMASTER_MAX_CONNECTIONS", "10000" (""), Open,
            "The most HTTP connections that are open at the same time; fewer if the limit of open files is lower. When more come, the connections that have been idle for longest are closed. One client address may have half of them.";
        trusted_proxies: Networks = "STATIONMASTER_TRUSTED_PROXIES", "" ("none"), Open,
            "Networks of proxies in front of the server. The address of a client is read from their forwarding headers; those of others are ignored.";
        metrics_listen: Maybe<Address> = "STATIONMASTER_METRICS_LISTEN", "127.0.0.1:9464" (""), Open,
            "The address of `/metrics`, which has a port of its own. An empty value turns it off. If the port is in use, the start fails if this setting is given, and logs a warning if not.";
    }
    "Storage" {
        data_dir: FilePath = "STATIONMASTER_DATA_DIR", "./data" (""), Open,
            "The directory for the SQLite database, the files with the master keys and the bootstrap token, and the lock file. It is created with mode 0700. Not used with PostgreSQL.";
        database_url: Maybe<DatabaseLocation> = "STATIONMASTER_DATABASE_URL", "" ("`sqlite://stationmaster.db`"), Url,
            "The database. A relative SQLite path begins in the data directory.";
        database_connections: Whole<2, 1_000> = "STATIONMASTER_DATABASE_CONNECTIONS", "20" (""), Open,
            "The most connections to PostgreSQL for the requests of one process. The process has ten more for the write lane, the dispatcher, notifications, jobs and polls. All of them are opened at the start, which fails otherwise.";
        database_timeout_seconds: Whole<1, 600> = "STATIONMASTER_DATABASE_TIMEOUT_SECONDS", "10" (""), Open,
            "The longest wait for an answer of the database, in seconds. After that, the connection to PostgreSQL is closed, and the request is answered 503. Migrations have no limit.";
        sqlite_synchronous_full: SynchronousFull = "STATIONMASTER_SQLITE_SYNCHRONOUS", "full" (""), Open,
            "`full`: a change that was answered survives a power cut. `normal`: it survives a crash of the process, but a power cut may undo the last changes.";
        write_batch_max: Whole<1, 256> = "STATIONMASTER_WRITE_BATCH_MAX", "256" (""), Open,
            "The most changes of runs in one commit. With 1, each change has its own commit, which is useful only for measurements.";
    }
    "Operator's credentials" {
        bootstrap_tokens: Maybe<BootstrapTokens> = "STATIONMASTER_BOOTSTRAP_TOKEN", "" ("created at the first start, in the file `bootstrap-token` of the data directory"), Secret,
            "The operator's token, or two while it is rotated: both are valid. Must be given with PostgreSQL.";
        master_keys: Maybe<Keys> = "STATIONMASTER_MASTER_KEYS", "" ("created at the first start, in the file `master-keys` of the data directory"), Secret,
            "The keys that encrypt the stored secrets. Must be given with PostgreSQL, here or by file. Without the keys, the secrets in the database are lost.";
        master_keys_file: Maybe<FilePath> = "STATIONMASTER_MASTER_KEYS_FILE", "" ("unset"), Open,
            "A file with the master keys, in place of `STATIONMASTER_MASTER_KEYS`. A running server reads the file again when the database names a key that it does not know.";
        legacy_token: Maybe<LegacyToken> = "STATIONMASTER_LEGACY_TOKEN", "" ("unset"), Secret,
            "A token that several clients already share. It becomes an admin and runner token of a demo publisher, so that the clients can get tokens of their own one by one. See docs/auth.md.";
    }
    "People" {
        public_url: Maybe<Origin> = "STATIONMASTER_PUBLIC_URL", "" ("`http://` and the address of the API if that is a loopback one; otherwise people can't sign in"), Open,
            "The origin under which people's browsers reach the server. Links in mails begin with it, and requests of people to another host are refused. A slash at its end is removed. See docs/sign-in.md.";
        registration: OpenOrClosed = "STATIONMASTER_REGISTRATION", "closed" (""), Open,
            "Who may become a user. `closed`: those who are invited, and those whom the operator creates. `open`: everybody who proves to own an e-mail address.";
        provision_publisher: Switch = "STATIONMASTER_PROVISION_PUBLISHER", "false" (""), Open,
            "Whether a person who signs in and is a member of no publisher gets a new one as its owner. Only where registration is open.";
        passwords: OffOrOn = "STATIONMASTER_PASSWORDS", "off" (""), Open,
            "Whether people may have passwords. Without them, people sign in with mailed links, passkeys, or elsewhere.";
        link_minutes: Whole<2, 15> = "STATIONMASTER_LINK_MINUTES", "10" (""), Open,
            "How long a mailed sign-in link and its code are valid, in minutes.";
        session_idle_minutes: Whole<5, 1_440> = "STATIONMASTER_SESSION_IDLE_MINUTES", "60" (""), Open,
            "A browser's session ends if it is not used for so long, in minutes.";
        session_days: Whole<1, 30> = "STATIONMASTER_SESSION_DAYS", "7" (""), Open,
            "A browser's session ends after so long, in days, however much it is used.";
        session_key: Maybe<SessionKey> = "STATIONMASTER_SESSION_KEY", "" ("unset: a key that the store holds is used alone"), Secret,
            "A further key for the hashes by which sessions are found. Another value ends all sessions at once. Give all processes the same one.";
        smtp_url: Maybe<SmtpServer> = "STATIONMASTER_SMTP_URL", "" ("unset: on a loopback public URL mails go to the log; elsewhere nobody can sign in by mail"), Secret,
            "The mail server that sends mails to people.";
        mail_from: Maybe<Sender> = "STATIONMASTER_MAIL_FROM", "" ("unset"), Open,
            "Whom mails come from. Must be given with `STATIONMASTER_SMTP_URL`.";
    }
    "Webhooks" {
        allow_http_destinations: Switch = "STATIONMASTER_ALLOW_HTTP_DESTINATIONS", "false" (""), Open,
            "Whether publishers may use `http` URLs. For tests and private networks.";
        allowed_destinations: Networks = "STATIONMASTER_ALLOWED_DESTINATIONS", "" ("none"), Open,
            "Networks that webhooks, subcommands and Slack messages may be sent to although they are not public, such as 127.0.0.0/8.";
        retry_schedule: Retries = "STATIONMASTER_RETRY_SCHEDULE", "5s,5m,30m,2h,5h,10h,10h" (""), Open,
            "The waits before the second, third and further tries of a delivery. Each wait varies at random by up to a fifth.";
        disable_endpoint_after_days: Whole<1, 365> = "STATIONMASTER_DISABLE_ENDPOINT_AFTER_DAYS", "5" (""), Open,
            "A webhook endpoint is disabled after so many days with nothing but failures. Its publisher gets an event after one day.";
    }
    "Runs" {
        claim_wait_max_seconds: Whole<0, 60> = "STATIONMASTER_CLAIM_WAIT_MAX_SECONDS", "60" (""), Open,
            "The longest wait of a claim for runs, in seconds. A claim that asks for more is answered after this time. Set it below the idle timeout of a proxy in front of the server.";
    }
    "Rate limits" {
        rate_limit_per_second: Whole<0, 1_000_000> = "STATIONMASTER_RATE_LIMIT_PER_SECOND", "1000" (""), Open,
            "The most requests a second of each publisher, with bursts of twice that. Each process counts for itself. 0 turns the limit off.";
        bootstrap_rate_per_minute: Whole<0, 1_000_000> = "STATIONMASTER_BOOTSTRAP_RATE_PER_MINUTE", "60" (""), Open,
            "The most requests a minute with a bootstrap token. Requests with a wrong one are limited to 5 a minute for each address. 0 turns both limits off.";
        auth_failures_per_minute: Whole<0, 1_000_000> = "STATIONMASTER_AUTH_FAILURES_PER_MINUTE", "60" (""), Open,
            "The most failed authentications a minute for each address (with IPv6, for each /64 network). 0 turns the limit off.";
    }
    "Retention and scheduled work" {
        retention_credentials_days: Whole<1, 36_500> = "STATIONMASTER_RETENTION_CREDENTIALS_DAYS", "30" (""), Open,
            "How long expired and revoked credentials and endpoint secrets are kept, in days.";
        retention_events_days: Whole<1, 36_500> = "STATIONMASTER_RETENTION_EVENTS_DAYS", "30" (""), Open,
            "How long events are kept, in days.";
        retention_deliveries_days: Whole<1, 36_500> = "STATIONMASTER_RETENTION_DELIVERIES_DAYS", "30" (""), Open,
            "How long finished deliveries with their attempts, finished replays and deleted endpoints are kept, in days.";
        retention_runs_days: Whole<1, 36_500> = "STATIONMASTER_RETENTION_RUNS_DAYS", "90" (""), Open,
            "How long finished runs are kept at most, in days. A pipeline may set less. Deleted pipelines and superseded versions are kept as long, and until no run refers to them.";
        retention_notices_days: Whole<1, 36_500> = "STATIONMASTER_RETENTION_NOTICES_DAYS", "7" (""), Open,
            "How long Slack messages about trains are kept after they were sent or finally failed, in days.";
        cron_leases: Cron = "STATIONMASTER_CRON_LEASES", "*/10 * * * * *" (""), Open,
            "When runs whose lease ran out are queued again or ended.";
        cron_endpoints: Cron = "STATIONMASTER_CRON_ENDPOINTS", "*/15 * * * * *" (""), Open,
            "When webhook endpoints are checked: those that failed for too long are disabled, and publishers get events about those that fail or work again.";
        cron_accounts: Cron = "STATIONMASTER_CRON_ACCOUNTS", "*/5 * * * * *" (""), Open,
            "When OAuth accounts whose tokens expire soon are refreshed, and logins that were not finished within 10 minutes are removed.";
        cron_idempotency_keys: Cron = "STATIONMASTER_CRON_IDEMPOTENCY_KEYS", "30 * * * * *" (""), Open,
            "When stored answers with a credential are wiped after 10 minutes, and idempotency keys are removed after 24 hours.";
        cron_credentials: Cron = "STATIONMASTER_CRON_CREDENTIALS", "0 11 1 * * *" (""), Open,
            "When expired and revoked credentials and endpoint secrets past their retention are removed.";
        cron_people: Cron = "STATIONMASTER_CRON_PEOPLE", "15 */10 * * * *" (""), Open,
            "When ended sessions, used links, old invitations and sent mails are removed.";
        cron_deliveries: Cron = "STATIONMASTER_CRON_DELIVERIES", "0 23 2 * * *" (""), Open,
            "When finished deliveries, replays and deleted endpoints past their retention are removed, and pending deliveries to deleted endpoints are cancelled.";
        cron_events: Cron = "STATIONMASTER_CRON_EVENTS", "0 41 2 * * *" (""), Open,
            "When events past their retention are removed.";
        cron_runs: Cron = "STATIONMASTER_CRON_RUNS", "0 19 3 * * *" (""), Open,
            "When finished runs, deleted pipelines and superseded versions past their retention are removed.";
        cron_notices: Cron = "STATIONMASTER_CRON_NOTICES", "0 37 3 * * *" (""), Open,
            "When Slack messages about trains past their retention are removed.";
        cron_publishers: Cron = "STATIONMASTER_CRON_PUBLISHERS", "0 53 3 * * *" (""), Open,
            "When the data of publishers that were deleted more than 7 days ago is removed.";
    }
    "Logging" {
        log: LogFilter = "STATIONMASTER_LOG", "info" (""), Open,
            "Which log lines are written to standard error. Database statements are left out unless `sqlx` or `sea_orm` is named.";
        log_format: Maybe<LogLines> = "STATIONMASTER_LOG_FORMAT", "" ("`text` on a terminal, else `json`"), Open,
            "The format of log lines.";
    }
}
