//! No image of this process's memory, which holds keys and credentials, reaches a disk.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Forbids core dumps. Best effort, and in two ways: the limit holds where dumps go to files, and a
/// process that is not dumpable is passed over where they are piped to a program (core(5)).
pub fn forbid() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = setrlimit(Resource::Core, none);
    #[cfg(target_os = "linux")]
    let limited = limited.and_then(|()| {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
    });
    if let Err(error) = limited {
        eprintln!("warning: core dumps can't be forbidden: {error}");
    }
}
