//! What Millrace promises, proved from outside on the real binary with real models.
mod tidy;
