"""From the directories of runs to pandas, plots and a report; nothing here needs torch."""
