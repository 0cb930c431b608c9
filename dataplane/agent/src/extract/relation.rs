//! The relations that statements may have.

/// How something may be said of something.
#[derive(Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its word, as it is stored.
    pub word: &'static str,
    /// What it means, for the model.
    pub meaning: &'static str,
    /// One thing at a time: a new one ends the one before.
    pub single: bool,
    /// The relation that cannot hold with the same object at the same time.
    pub opposite: Option<&'static str>,
}

impl Relation {
    /// The relation of a word.
    pub fn of(word: &str) -> Option<&'static Self> {
        RELATIONS.iter().find(|relation| relation.word == word)
    }
}

const fn single(word: &'static str, meaning: &'static str) -> Relation {
    Relation { word, meaning, single: true, opposite: None }
}

const fn several(word: &'static str, meaning: &'static str) -> Relation {
    Relation { word, meaning, single: false, opposite: None }
}

const fn against(word: &'static str, meaning: &'static str, opposite: &'static str) -> Relation {
    Relation { word, meaning, single: false, opposite: Some(opposite) }
}

/// All relations, in the order in which the model sees them. Words may be added; those that exist stay, because they
/// are stored.
pub const RELATIONS: &[Relation] = &[
    single("lives_in", "home: city or country"),
    single("works_at", "employer"),
    single("works_as", "profession"),
    single("studies_at", "school or university"),
    single("is_called", "name"),
    single("is_aged", "age in years"),
    single("born_on", "birthday"),
    single("born_in", "place of birth"),
    single("partner_is", "husband, wife or partner"),
    several("has_child", "son or daughter"),
    several("has_parent", "mother or father"),
    several("has_sibling", "brother or sister"),
    several("has_friend", "friend or colleague"),
    several("has_pet", "animal"),
    several("owns", "possession"),
    several("speaks", "language"),
    several("member_of", "group or club"),
    several("plays", "sport, game or instrument"),
    several("has_illness", "illness or injury"),
    several("allergic_to", "allergy"),
    several("plans", "plan or appointment"),
    against("likes", "what pleases", "dislikes"),
    against("dislikes", "what displeases", "likes"),
];
