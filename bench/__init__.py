"""What Morpheo costs, as ratios measured side by side."""
