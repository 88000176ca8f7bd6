"""What several fusions are fitted with: linear heads that shrink towards a start, and the meta-learner of stacks."""
