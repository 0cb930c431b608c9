//! The product binary `millrace`.

fn main() -> std::process::ExitCode {
    millrace_dataplane::cli::main()
}
