//! Random runs of the two machines against a simulated world. A failure names its seed;
//! `MILLRACE_SEED=<seed>` repeats it.

mod delivery;
mod random;
mod turns;
mod world;
