//! Architectures as data: what sets each apart from a plain llama network.
//!
//! There is one forward pass. A row of [`ARCHITECTURES`] says what it must do beyond the llama family's common frame
//! (RMS norms, gated feed-forward part, rotated queries and keys); parts that a file may have or lack, such as
//! attention biases, follow from the tensors that are there.

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// (0, 1), (2, 3), …: the order in which converters store llama's projections.
    Adjacent,
    /// (0, n/2), (1, n/2 + 1), …, as GPT-NeoX has it.
    Halves,
}

/// What the gate of the feed-forward part goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x × sigmoid(x).
    Silu,
    /// GELU in its tanh approximation.
    Gelu,
}

/// Which layers see only a window of the past, when the file names a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    /// Every layer.
    All,
    /// Every layer but the last of each group of this many.
    AllButLastOf(usize),
}

/// Whether layers have experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mixture {
    /// No layer has.
    Never,
    /// Every layer has when the file names their number.
    IfNamed,
    /// Every layer has.
    Always,
}

/// One architecture.
#[derive(Debug)]
pub(super) struct Architecture {
    /// Value of `general.architecture`, the prefix of the other keys.
    pub(super) name: &'static str,
    pub(super) pairs: Pairs,
    pub(super) activation: Activation,
    pub(super) windows: Windows,
    /// Window when the file names none.
    pub(super) default_window: Option<usize>,
    /// Base of the rotation in layers with a window, where it differs from the others' and the file names none.
    pub(super) local_theta: Option<f64>,
    /// Queries and keys are normalised head by head.
    pub(super) head_norms: bool,
    /// The results of attention and of the feed-forward part are normalised before they are added.
    pub(super) post_norms: bool,
    /// Gate and up projection are stored as one matrix, the gate first.
    pub(super) fused_gate: bool,
    /// Embeddings are multiplied by the root of the width.
    pub(super) scaled_embedding: bool,
    /// The model of this many layers scales attention by the root of width / heads instead of that of the head's
    /// length. The file does not say so; the published models of that depth do.
    pub(super) wide_scale_layers: Option<usize>,
    /// Whether a token may go through a few of many feed-forward parts.
    pub(super) experts: Mixture,
    /// Scores and logits are bounded by the soft caps that the file names.
    pub(super) soft_caps: bool,
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    pairs: Pairs::Adjacent,
    activation: Activation::Silu,
    windows: Windows::All,
    default_window: None,
    local_theta: None,
    head_norms: false,
    post_norms: false,
    fused_gate: false,
    scaled_embedding: false,
    wide_scale_layers: None,
    experts: Mixture::Never,
    soft_caps: false,
};

/// All architectures. Mistral and Mixtral models are stored as `llama`.
static ARCHITECTURES: [Architecture; 7] = [
    Architecture { experts: Mixture::IfNamed, ..LLAMA },
    Architecture { name: "qwen2", pairs: Pairs::Halves, ..LLAMA },
    Architecture { name: "qwen3", pairs: Pairs::Halves, head_norms: true, ..LLAMA },
    Architecture { name: "qwen3moe", pairs: Pairs::Halves, head_norms: true, experts: Mixture::Always, ..LLAMA },
    Architecture { name: "phi3", pairs: Pairs::Halves, fused_gate: true, ..LLAMA },
    Architecture {
        name: "gemma2",
        pairs: Pairs::Halves,
        activation: Activation::Gelu,
        windows: Windows::AllButLastOf(2),
        default_window: Some(4096),
        post_norms: true,
        scaled_embedding: true,
        wide_scale_layers: Some(46),
        soft_caps: true,
        ..LLAMA
    },
    Architecture {
        name: "gemma3",
        pairs: Pairs::Halves,
        activation: Activation::Gelu,
        windows: Windows::AllButLastOf(6),
        local_theta: Some(10_000.0),
        head_norms: true,
        post_norms: true,
        scaled_embedding: true,
        wide_scale_layers: Some(62),
        soft_caps: true,
        ..LLAMA
    },
];

/// The names in [`ARCHITECTURES`], for messages.
pub(super) const SUPPORTED: &str = "llama, qwen2, qwen3, qwen3moe, phi3, gemma2, gemma3";

impl Architecture {
    pub(super) fn by_name(name: &str) -> Option<&'static Architecture> {
        ARCHITECTURES.iter().find(|arch| arch.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_every_architecture() {
        assert_eq!(ARCHITECTURES.each_ref().map(|arch| arch.name).join(", "), SUPPORTED);
    }
}
