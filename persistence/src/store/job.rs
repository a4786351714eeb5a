//! The names of scheduled jobs.

/// Defines the jobs, each with its name in the store, in logs and in metrics.
macro_rules! jobs {
    ($($(#[$doc:meta])* $job:ident = $name:literal,)+) => {
        /// Work that one process at a time does on a schedule.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Job {
            $($(#[$doc])* $job,)+
        }

        impl Job {
            /// All jobs.
            pub const ALL: &[Self] = &[$(Self::$job),+];

            /// The job's name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$job => $name,)+ }
            }

            /// The name of the job's part in the process's progress.
            #[must_use]
            pub const fn part(self) -> &'static str {
                match self { $(Self::$job => concat!("job_", $name),)+ }
            }
        }
    };
}

jobs! {
    /// Removes revoked and expired credentials, and other rows that nobody needs any more.
    Credentials = "credentials",
    /// Removes stored responses that hold a credential, and old idempotency keys.
    IdempotencyKeys = "idempotency_keys",
    /// Removes old deliveries and replays, and endpoints that were deleted long ago. Cancels
    /// deliveries to deleted endpoints.
    Deliveries = "deliveries",
    /// Removes old events.
    Events = "events",
    /// Removes old runs, and pipelines and versions to which no run refers any more.
    Runs = "runs",
    /// Removes publishers that were deleted long ago, with all their rows.
    Publishers = "publishers",
    /// Ends expired leases of runs.
    Leases = "leases",
    /// Checks the health of endpoints: which fail, and which work again.
    Endpoints = "endpoints",
    /// Removes old messages about trains.
    Notices = "notices",
    /// Removes ended sessions, used links, old invitations and sent mails.
    People = "people",
    /// Refreshes accounts whose tokens expire soon.
    Accounts = "accounts",
}
