//! The program; everything is in the library beside it.

/// Gives back what a burst took (ADR 0033).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    server::core_dumps::forbid();
    server::cli::run()
}
