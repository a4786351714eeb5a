//! The program; everything is in the library beside it.

fn main() -> std::process::ExitCode {
    server::core_dumps::forbid();
    server::cli::run()
}
